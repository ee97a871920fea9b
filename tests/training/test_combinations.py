"""What holds for each model, head, regulariser, average, optimizer and schedule alone holds for
drawn combinations of them: a killed training resumes bit for bit, evaluation reads each document by
itself, and an export is imported as what it was.
"""

import random
import re

import pytest
from fitted import Place, assert_same

import lmkit
from lmkit import cli
from lmkit.assembly import make_data
from lmkit.errors import UserError
from lmkit.inference.evaluation import measure

NUM_QUICK, NUM_ALL = 3, 40
LAST = 30  # window before which a training is killed at the latest
REFUSED = re.compile("no recurrent matrix|outputs of layers of one size|a scale that changes")
# Of each line one alternative is drawn; combinations that are refused, for one of these reasons,
# are drawn anew.
GROUPS = """
tokenizer=bytes | tokenizer=characters | tokenizer=word data.bptt=12
data.protocol=document | data.protocol=stream data.variable_bptt=true
model.num_layers=1 | model.num_layers=2 | model.num_layers=3
model.tie_weights=true | model.tie_weights=false
| | model.residual=rms_norm model.expansion=2 | model.residual=layer_norm
| | model.sum_layers=true | model.hidden_sizes=[8,4]
| model.dropout=0.3 | model.dropout=0.3 model.locked_dropout=true
| model.embedding_dropout=0.2 model.word_dropout=0.1 | model.output_dropout=0.3
| | model.weight_dropout=0.4 | model.zoneout=0.2 | model.fresh_state=0.2
| | model.recurrent_init=orthogonal | model.recurrent_init=0.1
| regularizers=[ar] | regularizers=[ar,tar]
| | kernels=compiled
| trainer.precision=bf16-mixed
| | trainer.accumulate_grad_batches=2
| trainer.val_check_interval=4 | trainer.val_check_interval=0.5
callbacks.checkpoint.every_n_train_steps=3 | callbacks.checkpoint.every_n_train_steps=7
"""
# And of each of these.
CELLS = """
model=lstm
model=lstm model.forget_gate_bias=1 model.state_dropout=0.3
model=lstm model.cap_input_gate=true
model=gru
model=elman
model=lstmp model.hidden_size=10 model.projection_size=4
model=mogrifier model.rank=2 model.gate_bias=true
model=mogrifier model.rank=0 model.rounds=1 model.cell_zoneout=0.2
model=layer_norm_lstm
model=qrnn model.window=2
model=qrnn model.pooling=ifo
model=min_gru
model=min_lstm model.state_expansion=2
model=slstm
model=slstm model.head_norm=false
model=mlstm
"""
HEADS = """
head=full
head=full head.bias=false
head=adaptive head.cutoffs=[8]
head=adaptive head.cutoffs=[5,12]
head=mixture head.num_experts=3 head.latent_dropout=0.3
head=mixture head.num_experts=2 head.locked_latent=false
head=projected head.projection_dropout=0.3
head=sampled head.num_samples=6 head.sampler=unigram
"""
OPTIMIZERS = """
optimizer=sgd
optimizer=sgd optimizer.momentum=0.5
optimizer=adam optimizer.lr=0.01
optimizer=adamw optimizer.lr=0.01 optimizer.groups={bias:{weight_decay:0}}
optimizer=muon optimizer.lr=0.02
optimizer=rmsprop optimizer.lr=0.003
"""
AVERAGES = """

averaging=ema averaging.start=5
averaging=two_tailed
averaging=nt_asgd averaging.interval=1
averaging=nt_asgd averaging.latest=2
averaging=swa averaging.every=3 averaging.start_epoch=1
"""
SCHEDULERS = """
scheduler=constant
scheduler=plateau
scheduler=one_cycle
scheduler=wsd scheduler.warmup_steps=5
scheduler=cosine
scheduler=hold_then_decay scheduler.hold=1
scheduler=inverse_sqrt
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("combinations"))


def alternatives():
    """Of each group its alternatives, each a list of settings."""
    lists = [each[1:-1].split("\n") for each in (CELLS, HEADS, OPTIMIZERS, AVERAGES, SCHEDULERS)]
    lists += [line.split("|") for line in GROUPS.strip().split("\n")]
    return [[alternative.split() for alternative in each] for each in lists]


def drawn(place, seed):
    """Settings that go together, and windows before which the training is killed."""
    for attempt in range(100):
        draw = random.Random(f"{seed}, {attempt}")
        settings = [each for group in alternatives() for each in draw.choice(group)]
        try:
            place.config(*settings)
        except UserError as error:
            _, *mistakes = str(error).splitlines()
            if not all(map(REFUSED.search, mistakes)):
                raise
            continue
        return settings, sorted(draw.sample(range(1, LAST), 2))
    raise AssertionError("nothing goes together")


@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=[pytest.mark.slow] * (n >= NUM_QUICK)) for n in range(NUM_ALL)]
)
def test_a_combination(place, seed, tmp_path):
    settings, kills = drawn(place, seed)
    print(*settings, "killed before", *kills)  # shown where it fails
    whole = place.fit(*settings)
    assert_same(place.train(*settings, kill_at=tuple(kills)), whole)

    trained = lmkit.load(whole.path)
    store = make_data(place.config(*settings)).prepared.stores["test"]
    alone, beside = (measure(trained, store, "document", lanes) for lanes in (1, 4))
    assert alone["num_tokens"] == beside["num_tokens"] == store.num_tokens
    assert alone["nll"] == pytest.approx(beside["nll"], rel=1e-5)

    text = "the cat sat on a mat\n\nunder the dog"
    nlls = [token.nll for token in trained.score(text, protocol="document")]
    assert sum(nlls) / len(nlls) == pytest.approx(trained.nll(text, protocol="document"), rel=1e-5)
    exported = f"path={tmp_path / 'model'}"
    assert cli.main(["export", str(whole.path), "format=safetensors", exported]) == 0
    there = (f"outputs={tmp_path}", "name=imported", "run_id=back")
    assert cli.main(["import", str(tmp_path / "model"), *there]) == 0
    back = lmkit.load(tmp_path / "imported" / "back")  # it may have other kernels
    found = [token.nll for token in back.score(text, protocol="document")]
    assert found == pytest.approx(nlls, rel=1e-5)
