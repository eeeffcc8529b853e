"""Commands about data: `pyro-avse lips | data info | data synth | data draw-noise`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pyro_avse.cli.app import FaceOption, JsonFlag, SeedOption, app, data_app, progress_bar, say
from pyro_avse.errors import InputError

LISTED = 20
"""Missing or broken files named in prose; with --json all are."""


@app.command()
def lips(
    video: Annotated[Path, typer.Argument(help="Video of a talking face, any format.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Lips to write, .npz.")],
    preview: Annotated[
        Path | None, typer.Option(help="Picture of the crops to write, .png.")
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option(help="CSV of the face: frame or seconds, x, y, w, h.")
    ] = None,
    face: FaceOption = "auto",
) -> None:
    """Cut the lips out of a video."""
    from pyro_avse.data.lips.watch import check_preview, pack, save_preview, watch
    from pyro_avse.files import check_place, refuse_inputs, write_atomically

    if output.suffix != ".npz":
        raise InputError(f"{output} is no .npz: lips are written as .npz")
    check_place(output)
    if preview is not None:
        check_preview(preview)
    refuse_inputs([output, preview], {"the video": video, "the boxes' file": boxes})
    with progress_bar() as update:
        watched = watch(video, boxes, face=face, progress=update)
    for note in watched.notes:
        say(note)
    write_atomically(output, pack(watched.lips))
    say(f"wrote {output}: {len(watched.lips.frames)} frames at {watched.lips.fps:g} fps")
    if preview is not None:
        save_preview(preview, watched)
        say(f"wrote {preview}")


@data_app.command()
def info(
    folder: Annotated[Path, typer.Argument(help="Corpus, or any folder of clips.")],
    as_json: JsonFlag = False,
) -> None:
    """Say what a corpus holds, and what of it is missing or broken."""
    from rich.console import Console
    from rich.table import Table

    from pyro_avse.data.corpora.info import describe

    with progress_bar() as update:
        found = describe(folder, lambda done: update(done, "reading"))
    say(f"{folder}: {found.kind}")
    broken = [f"broken: {item['file']}: {item['reason']}" for item in found.total["broken"]]
    for lines in (found.missing, broken):
        for line in lines if as_json else lines[:LISTED]:
            say(line)
        if len(lines) > LISTED and not as_json:
            say(f"... and {len(lines) - LISTED} more")
    if as_json:
        print(json.dumps(found.total))
        return
    table = Table("", "speakers", "utterances", "with lips", "noisy", "minutes")
    for row in [*found.splits, {"split": "all", **found.total}]:
        counts = (str(row[key]) for key in ("speakers", "utterances", "with_lips", "noisy"))
        table.add_row(row["split"], *counts, f"{row['minutes']:.1f}")
    Console().print(table)
    say(f"{len(broken)} broken, {len(found.missing)} missing")


@data_app.command()
def synth(
    out: Annotated[Path, typer.Option(help="Corpus folder to make.")],
    speakers: Annotated[int, typer.Option(help="Voices and faces.")] = 40,
    minutes: Annotated[float, typer.Option(help="Speech in all.")] = 60.0,
    seed: SeedOption = 0,
) -> None:
    """Make a corpus of synthetic talkers: speech, lips and words."""
    from pyro_avse.data.talker.synth import synthesise_corpus

    with progress_bar() as update:
        synthesise_corpus(
            out,
            speakers=speakers,
            minutes=minutes,
            seed=seed,
            progress=lambda done: update(done, "talking"),
        )
    say(f"wrote {out}")


@data_app.command("draw-noise")
def draw_noise(
    out: Annotated[Path, typer.Option(help="Folder for noise_1.wav, noise_2.wav, ...")],
    count: Annotated[int, typer.Option(min=1, help="Noises.")] = 8,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each.")] = 4.0,
    speech: Annotated[
        Path | None, typer.Option(help="Clean speech to add, for mixture_1.wav, ... besides.")
    ] = None,
    snr: Annotated[float, typer.Option(help="Of these mixtures, in dB.")] = 0.0,
    voices: Annotated[
        list[Path] | None, typer.Option(help="Sound of other speakers, for babble in each.")
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """Hear what guides believe of noise before they hear any: draws of the noise program."""
    from pyro_avse.data.media.saving import save_audio
    from pyro_avse.enhancement.draws import draw_noises
    from pyro_avse.files import make_folder, refuse_inputs

    kinds = ("noise", "mixture")
    names = [out / f"{kind}_{k}.wav" for k in range(1, count + 1) for kind in kinds]
    heard = {f"the voice {path}": path for path in voices or []}
    refuse_inputs(names, {"the speech": speech, **heard})
    written = list(
        draw_noises(count, seconds, speech=speech, snr=snr, voices=voices or [], seed=seed)
    )
    make_folder(out)
    for name, waveform in written:
        save_audio(out / f"{name}.wav", waveform, 16000)
    say(f"wrote {len(written)} sounds to {out}")
