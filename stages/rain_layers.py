"""The bank of rain-streak layers: rendered, or cut from streak images of one's own.

`layers.npy` is (n, size, size) uint8, `parameters.json` says what each layer was made from.
"""

from pathlib import Path

from pipeline.artifacts import JSON, Manifest, file_digest, folder_listing, write_json
from pipeline.config import RainLayersConfig, Section
from pipeline.graph import Job, Stage, StageError

PARAMETERS_FILE = "parameters.json"


class RainBankConfig(Section):
    rain_layers: RainLayersConfig
    seed: int


def rain_layers_stage(config: RainLayersConfig, *, seed: int) -> Stage:
    """The stage that makes the bank, one for all sources and tasks of a run."""
    return Stage(
        name="rain-layers",
        kind="rain-layers",
        version=2,
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
    path = job.folder / rain_bank.LAYERS_FILE
    bank: rain_bank.RenderedBank | rain_bank.FolderBank
    origin: dict[str, JSON]
    if config.folder is None:
        bank = rain_bank.RenderedBank(
            count=config.layers, size=config.size, preset=config.preset, seed=seed
        )
        if not path.exists():
            rain_bank.write_layers(path, bank, resume=True, progress=job.progress)
        origin = {"origin": f"rendered, {config.preset}"}
    else:
        folder = Path(config.folder)
        # First of all: whatever changes from here on makes the bank stale.
        listing = folder_listing(folder)
        try:
            bank = rain_bank.open_folder(
                folder, layers=config.layers, largest_size=config.size, seed=seed
            )
            # What an interrupted run left may be of other images.
            rain_bank.write_layers(path, bank, resume=False, progress=job.progress)
        except rain_bank.RainBankError as error:
            raise StageError(str(error)) from error
        # Stages that read the bank follow its content, not where the images were.
        identity = file_digest(path)
        origin = {"origin": str(folder.resolve()), "listing": listing, "identity": identity}
    parameters = [bank.describe(number) for number in range(bank.count)]
    write_json(job.folder / PARAMETERS_FILE, {"layers": parameters})
    statistics = rain_bank.bank_statistics(path)
    return {"layers": bank.count, "size": bank.size, **origin, **statistics}


def why_stale(config: Section, manifest: Manifest) -> str | None:
    """Why the bank no longer stands for the folder of streak images; None where it does."""
    assert isinstance(config, RainBankConfig)
    assert config.rain_layers.folder is not None
    folder = Path(config.rain_layers.folder)
    if folder.is_dir() and folder_listing(folder) != manifest.summary["listing"]:
        return f"{folder} changed since its streak images were read"
    return None
