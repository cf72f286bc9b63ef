"""The bank of rain-streak layers: rendered, or cut from streak images of one's own.

`layers.npy` is (n, size, size) uint8, `parameters.json` says what each layer was made from.
"""

from pathlib import Path

from pipeline.artifacts import JSON, Manifest, file_digest, write_json
from pipeline.config import RainLayersConfig, Section
from pipeline.graph import Job, Stage, StageError

LAYERS_FILE = "layers.npy"
PARAMETERS_FILE = "parameters.json"


class RainBankConfig(Section):
    rain_layers: RainLayersConfig
    seed: int


def rain_layers_stage(config: RainLayersConfig, *, seed: int) -> Stage:
    """The stage that makes the bank, one for all sources and tasks of a run."""
    return Stage(
        name="rain-layers",
        kind="rain-layers",
        version=1,
        config=RainBankConfig(rain_layers=config, seed=seed),
        run=run,
        # Rendered layers follow from the config; what is in a folder does not.
        stale=None if config.folder is None else why_stale,
    )


def run(job: Job) -> dict[str, JSON]:
    """Write the bank; the summary says how much rain there is."""
    from pipeline.data import rain_bank

    assert isinstance(job.config, RainBankConfig)
    config, seed = job.config.rain_layers, job.config.seed
    path = job.folder / LAYERS_FILE
    bank: rain_bank.RenderedBank | rain_bank.FolderBank
    origin: dict[str, JSON]
    try:
        if config.folder is None:
            origin = {"origin": f"rendered, {config.preset}"}
            bank = rain_bank.RenderedBank(
                count=config.layers, size=config.size, preset=config.preset, seed=seed
            )
        else:
            folder = Path(config.folder)
            bank = rain_bank.open_folder(
                folder, layers=config.layers, largest_size=config.size, seed=seed
            )
            origin = {"origin": str(folder.resolve()), "listing": rain_bank.folder_digest(folder)}
        # What an interrupted run left is certainly the same only where it was rendered.
        is_rendered = config.folder is None
        if not (is_rendered and path.exists()):
            rain_bank.write_layers(path, bank, resume=is_rendered, progress=job.progress)
    except rain_bank.RainBankError as error:
        raise StageError(str(error)) from error
    parameters = [bank.describe(number) for number in range(bank.count)]
    write_json(job.folder / PARAMETERS_FILE, {"layers": parameters})
    if not is_rendered:
        # Stages that read the bank follow its content, not where the images were.
        origin["identity"] = file_digest(path)
    statistics = rain_bank.bank_statistics(path)
    return {"layers": bank.count, "size": bank.size, **origin, **statistics}


def why_stale(config: Section, manifest: Manifest) -> str | None:
    """Why the bank no longer stands for the folder of streak images; None where it does."""
    from pipeline.data.rain_bank import folder_digest

    assert isinstance(config, RainBankConfig)
    assert config.rain_layers.folder is not None
    folder = Path(config.rain_layers.folder)
    if folder.is_dir() and folder_digest(folder) != manifest.summary["listing"]:
        return f"{folder} changed since its streak images were read"
    return None
