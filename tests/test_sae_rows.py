"""Rows of an SAE in a file of their own: the same edits, and clear words where a row is missing."""

import pytest
import torch
from safetensors.torch import load_file

from esr_eval.errors import EsrError
from esr_eval.sae.sparse import open_sae, write_rows
from esr_eval.spec import SAERef
from esr_eval.subjects import find_subject

SUBJECT = find_subject("smollm2-135m")
KEPT = [3244, 795, 20]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "few.safetensors"
    size = write_rows(SUBJECT.sae, KEPT, file)
    # Three latents' encoder and decoder rows in the SAE's own 16 bits, and the decoder's bias.
    assert size < 3 * 2 * 576 * 4 + 576 * 4 + 4096
    return file


def test_rows_and_activations_equal_those_of_the_whole_sae(rows):
    whole, part = open_sae(SUBJECT.sae), open_sae(SUBJECT.sae, rows)
    x = 20 * torch.randn(50, 576, generator=torch.manual_seed(0))
    for latent in KEPT:
        assert torch.equal(part.decoder_row(latent), whole.decoder_row(latent))
    wanted = [20, 3244]
    got, want = part.encoder(wanted)(x), whole.encoder(wanted)(x)
    assert torch.equal(got, want)
    assert bool((want > 0).any())
    assert part.digest == whole.digest


def test_rounded_rows_are_close_lie_in_16_bits_and_say_so(tmp_path):
    file = tmp_path / "rounded.safetensors"
    write_rows(SUBJECT.sae, KEPT, file, rounded=True)
    assert load_file(file)["W_dec"].dtype == torch.bfloat16
    part, whole = open_sae(SUBJECT.sae, file), open_sae(SUBJECT.sae)
    for latent in KEPT:
        row = part.decoder_row(latent)
        torch.testing.assert_close(row, whole.decoder_row(latent), rtol=2**-8, atol=0)
        assert torch.equal(row, row.bfloat16().float())
    assert part.digest == whole.digest + "-bfloat16"


def test_a_latent_without_a_row_is_refused_with_the_way_out(rows):
    part = open_sae(SUBJECT.sae, rows)
    with pytest.raises(EsrError, match="but not of latent 21"):
        part.check_latent(21)
    with pytest.raises(EsrError, match="not of latent 9"):
        part.encoder([20, 9])
    with pytest.raises(EsrError, match="out of range"):
        part.decoder_row(5000)
    with pytest.raises(EsrError, match="takes the whole SAE"):
        part.check_whole()


def test_rows_of_another_sae_and_other_files_are_refused(rows, tmp_path):
    with pytest.raises(EsrError, match="holds rows of the SAE"):
        open_sae(SAERef(release="another"), rows)
    with pytest.raises(EsrError, match="There is no file"):
        open_sae(SUBJECT.sae, tmp_path / "none.safetensors")
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"not safetensors")
    with pytest.raises(EsrError, match="holds no SAE rows"):
        open_sae(SUBJECT.sae, wrong)


def test_a_missing_row_is_found_before_the_weights_load(rows):
    from inspect_ai.model import get_model

    provider = get_model("esr/smollm2-135m", sae_rows=str(rows), memoize=False).api
    provider.preflight()
    provider.check_latents(KEPT)
    with pytest.raises(EsrError, match="not of latent 856"):
        provider.check_latents([20, 856])


@pytest.mark.model
def test_an_evaluation_with_rows_alone_gives_the_same_samples(rows, run_in):
    from inspect_ai import eval as inspect_eval

    def answers(**model_args):
        (log,) = inspect_eval(
            "esr_eval/esr",
            model="esr/smollm2-135m",
            model_args={"device": "cpu", **model_args},
            task_args={"latents": [795, 3244], "trials_per_latent": 1, "strength": 40},
            max_tokens=8,
            display="none",
        )
        assert log.status == "success"
        return {s.id: (s.output.completion, s.output.metadata["sae_digest"]) for s in log.samples}

    assert answers(sae_rows=str(rows)) == answers()


def test_the_command_writes_rows_of_latents_and_detectors(tmp_path):
    from typer.testing import CliRunner

    from esr_eval.cli import app
    from esr_eval.sae.files import RowsFile

    out = tmp_path / "rows.safetensors"
    command = ["latents", "rows", "smollm2-135m", "-o", str(out), "--detectors", "1,2"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "rows of 46 latents" in done.output
    assert {1, 2, 795} <= set(RowsFile.read(out, SUBJECT.sae).latents)
