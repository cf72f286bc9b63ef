"""The README.md of a model folder, per architecture, as the Hugging Face Hub shows it."""

CARD_HEAD = """---
{{ card_data }}
---

"""
CARD_FOOT = """
{% if published_file -%}
Imported from published weights: `{{ published_file }}`

SHA-256 of that file: `{{ sha256 }}`

License: its publisher's
{%- else -%}
{% if checkpoint -%}
Exported from a checkpoint: {{ checkpoint }}
{%- else -%}
Trained on: {{ trained_on }}
{%- endif %}

Fingerprint of the run's config: `{{ fingerprint }}`
{%- endif %}

Parameters: {{ parameters }}
"""
IPT_CARD = (
    CARD_HEAD
    + """# Image Processing Transformer

Restores RGB photographs with one shared transformer ([paper](https://arxiv.org/abs/2012.00364)).

Tasks: {{ tasks }}

```python
from pipeline.models.ipt import IPT
from pipeline.restore import restore

model = IPT.from_pretrained("this folder")
# photograph: (3, H, W), RGB in [0, 1]
restored = restore(
    lambda x: model(x, "{{ example }}"), photograph,
    scale=model.config.scales["{{ example }}"], patch_size=model.config.size.patch_size,
)
```
"""
    + CARD_FOOT
)
DNCNN_CARD = (
    CARD_HEAD
    + """# DnCNN

A convolutional denoiser ([paper](https://arxiv.org/abs/1608.03981)).

Tasks: {{ tasks }}

```python
from pipeline.models.dncnn import DnCNN

model = DnCNN.from_pretrained("this folder")
restored = model(photographs)  # (N, C, H, W) in [0, 1]
```
"""
    + CARD_FOOT
)
