"""Models of transformers and adapters of peft, with random weights, which need seconds to be imported."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from easytorch import Model
from easytorch.callbacks import LRScheduler
from tests.common_resume import CrashAfter, SimulatedCrash
from tests.loops import same_weights

pytestmark = [
    pytest.mark.slow,
    # peft calls it when it wraps a model of transformers.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

SIZES = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 32,
}  # fmt: skip
IDS = torch.randint(1, 50, (14, 10), generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(14) % 3
LENGTHS = torch.tensor([10, 2, 3, 10, 5, 4, 2, 9, 10, 6, 2, 3, 8, 2])
# The labels of a causal language model, of another number in each batch.
TOKENS = {
    "input_ids": IDS,
    "attention_mask": (torch.arange(10) < LENGTHS[:, None]).long(),
    "labels": torch.where(torch.arange(10) < LENGTHS[:, None], IDS, -100),
}
CLASSES = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": LABELS}


def bert(dropout=0.1):
    from transformers import AutoModelForSequenceClassification, BertConfig

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(
        BertConfig(**SIZES, num_labels=3, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    )


def gpt2(dropout=0.1):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50,
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 32,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout))


def llama(dropout=0.0):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1, attention_dropout=dropout))


def lora(net, **options):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(net, LoraConfig(r=2, **options))


def lora_gpt2(dropout=0.1):
    return lora(gpt2(dropout), task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)


def lora_bert(dropout=0.1):
    return lora(bert(dropout), task_type="SEQ_CLS", target_modules=["query", "value"])


def batches(data, size):
    return [{key: value[i : i + size] for key, value in data.items()} for i in range(0, len(IDS), size)]


def compiled(net, *args, **options):
    return Model(net, device="cpu").compile("adamw", *args, **{"lr": 1e-2, **options})


def hand_loop(net, data, count, epochs=2):
    """Train as the tutorial of transformers does, and return the mean loss of each epoch by what the loss has counted."""
    optimizer, means = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 1e-2, fused=True), []
    net.train()
    for _ in range(epochs):
        total, size = 0.0, 0
        for batch in data:
            loss = net(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total, size = total + loss.item() * count(batch), size + count(batch)
        means.append(total / size)
    return means


def next_tokens(batch):
    return int((batch["labels"][:, 1:] != -100).sum())


@pytest.mark.parametrize(
    ("network", "data", "count"),
    [
        (bert, CLASSES, lambda batch: len(batch["labels"])),
        (gpt2, TOKENS, next_tokens),
        (llama, TOKENS, next_tokens),
        (lora_gpt2, TOKENS, next_tokens),
        (lora_bert, CLASSES, lambda batch: len(batch["labels"])),
    ],
)
def test_training_equals_the_hand_written_loop(network, data, count):
    net = network()
    plain = copy.deepcopy(net)
    torch.manual_seed(1)
    history = compiled(net).fit(batches(data, 4), epochs=2, verbose=0)
    torch.manual_seed(1)
    means = hand_loop(plain, batches(data, 4), count)
    assert same_weights(net, plain)
    assert history["loss"] == pytest.approx(means, abs=1e-6)


@pytest.mark.parametrize("network", [gpt2, llama, lora_gpt2])
def test_accumulated_texts_equal_one_batch(network):
    net = network(0.0)
    plain = copy.deepcopy(net)
    options = {"lr": 0.1, "gradient_accumulation_steps": 4}
    Model(net, device="cpu").compile("sgd", **options).fit(batches(TOKENS, 4), verbose=0)
    Model(plain, device="cpu").compile("sgd", lr=0.1).fit(batches(TOKENS, 14), verbose=0)
    torch.testing.assert_close(net.state_dict(), plain.state_dict(), rtol=0, atol=1e-6)
    loss = compiled(net).evaluate(batches(TOKENS, 4), verbose=0)["loss"]
    assert loss == pytest.approx(net.eval()(**TOKENS).loss.item(), abs=1e-6)


def test_the_attention_cache_is_left_out_of_predictions():
    net = gpt2()
    outputs = Model(net, device="cpu").predict(batches({"input_ids": IDS}, 4), verbose=0)
    assert set(outputs) == {"logits"}
    assert type(outputs).__name__ == "CausalLMOutputWithCrossAttentions"
    expected = net.eval()(input_ids=IDS)
    assert expected.past_key_values is not None
    torch.testing.assert_close(torch.from_numpy(outputs.logits), expected.logits.detach(), rtol=0, atol=1e-5)


def test_outputs_without_loss_go_to_a_loss_by_name(tmp_path):
    net = bert()
    plain = copy.deepcopy(net)
    model = compiled(net, "cross_entropy", metrics=["accuracy"])
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    torch.manual_seed(1)
    history = model.fit(inputs, LABELS, batch_size=4, shuffle=False, verbose=0)
    torch.manual_seed(1)
    hand_loop(plain, batches(CLASSES, 4), lambda batch: 1, 1)
    assert same_weights(net, plain)
    assert "accuracy" in history
    assert model.predict_classes(inputs, verbose=0).shape == (14,)
    assert "accuracy" in str(model.report(inputs, LABELS, bootstrap=0))


def test_labels_of_a_pair_become_the_argument_labels():
    net, other = bert(0.0), bert(0.0)
    compiled(net).fit(IDS, LABELS, batch_size=4, shuffle=False, verbose=0)
    compiled(other).fit(batches({"input_ids": IDS, "labels": LABELS}, 4), verbose=0)
    assert same_weights(net, other)


def test_a_collator_and_a_schedule_of_transformers():
    from transformers import default_data_collator, get_linear_schedule_with_warmup

    samples = [{"input_ids": row.tolist(), "label": int(y)} for row, y in zip(IDS, LABELS, strict=True)]
    loader = DataLoader(samples, 4, collate_fn=default_data_collator)
    schedule = LRScheduler(lambda optimizer: get_linear_schedule_with_warmup(optimizer, 2, 8), step_every="update")
    history = compiled(bert(), scheduler=schedule).fit(loader, epochs=2, verbose=0)
    assert history["lr"] == pytest.approx([1e-2 * 4 / 6, 0.0])


def test_tied_weights_are_saved_trained_and_generate(tmp_path):
    model = compiled(gpt2())
    model.fit(batches(TOKENS, 4), verbose=0)
    net = model.module
    assert net.lm_head.weight is net.transformer.wte.weight
    twin = Model(gpt2(), device="cpu").load(model.save(tmp_path / "model.pt"))
    assert twin.module.lm_head.weight is twin.module.transformer.wte.weight
    tokens = [
        each.eval().generate(IDS[:2], max_new_tokens=3, do_sample=False, pad_token_id=0) for each in (net, twin.module)
    ]
    assert torch.equal(*tokens)
    weights = Model(gpt2(), device="cpu").load_weights(model.save_weights(tmp_path / "weights.safetensors"))
    assert same_weights(weights.module, net)


def test_checkpointed_activations_give_the_same_weights():
    net, plain = gpt2(0.0), gpt2(0.0)
    net.activation_checkpointing_enable()
    compiled(net).fit(batches(TOKENS, 7), verbose=0)
    compiled(plain).fit(batches(TOKENS, 7), verbose=0)
    torch.testing.assert_close(net.state_dict(), plain.state_dict(), rtol=0, atol=1e-6)


def test_only_adapters_are_trained_saved_and_resumed(tmp_path):
    def fit(**options):
        net = lora_bert()
        torch.manual_seed(1)
        model = compiled(net, metrics=["multiclass_accuracy"])
        model.fit(CLASSES, epochs=2, batch_size=4, verbose=0, **options)
        return model

    before = lora_bert().state_dict()
    expected = fit()
    trained = {name for name, p in expected.module.named_parameters() if p.requires_grad}
    changed = {name for name, value in expected.module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed <= trained
    assert {
        id(p) for group in expected.optimizer.param_groups for p in group["params"] if p in expected.optimizer.state
    } == {id(p) for p in expected.module.parameters() if p.requires_grad}
    with pytest.raises(SimulatedCrash):
        fit(resume=tmp_path / "run", callbacks=[CrashAfter(5)])
    assert same_weights(fit(resume=tmp_path / "run").module, expected.module)
    twin = Model(lora_bert(), device="cpu").load(expected.save(tmp_path / "model.pt"))
    assert same_weights(twin.module, expected.module)


def test_adapters_alone_are_saved_and_merged(tmp_path):
    from peft import PeftModel

    model = compiled(lora_bert())
    model.fit(CLASSES, batch_size=4, verbose=0)
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    outputs = model.predict(inputs, verbose=0).logits
    model.module.save_pretrained(tmp_path)
    loaded = Model(PeftModel.from_pretrained(bert(), tmp_path), device="cpu")
    assert outputs == pytest.approx(loaded.predict(inputs, verbose=0).logits, abs=1e-6)
    merged = Model(model.module.merge_and_unload(), device="cpu").predict(inputs, verbose=0).logits
    assert outputs == pytest.approx(merged, abs=1e-5)


def test_a_wrapper_without_a_task_takes_the_arguments_of_its_model():
    net = lora(gpt2(), target_modules=["c_attn"], fan_in_fan_out=True)
    assert net.forward.__name__ == "forward"
    compiled(net).fit(batches(TOKENS, 4), verbose=0)
    assert F.softmax(torch.from_numpy(Model(net, device="cpu").predict(IDS, verbose=0).logits), -1).shape == (
        14,
        10,
        50,
    )


def test_export_leaves_out_labels_and_the_cache(tmp_path):
    model = compiled(llama())
    model.fit(batches(TOKENS, 7), verbose=0)
    path = model.export(tmp_path / "net.pt2")
    program = torch.export.load(path).module()
    inputs = {key: value[:3] for key, value in TOKENS.items() if key != "labels"}
    torch.testing.assert_close(
        program(**inputs).logits, model.module.eval()(**inputs).logits.detach(), rtol=0, atol=1e-5
    )


# Errors

LONG = torch.ones(4, 40, dtype=torch.long)
FLOATS, HOT = LABELS.float(), torch.eye(3, dtype=torch.long)[LABELS]


def roberta():
    from transformers import RobertaConfig, RobertaForSequenceClassification

    return RobertaForSequenceClassification(RobertaConfig(**SIZES, num_labels=3))


def several_labels():
    net = bert()
    net.config.problem_type = "multi_label_classification"
    return net


WRONG = {
    "high label": (
        bert,
        IDS,
        LABELS + 1,
        r"labels 0 to 2 \(config.num_labels=3\), received labels from 1 to 3.*num_labels=4",
    ),
    "negative label": (bert, IDS, LABELS - 1, r"received labels from -1 to 1\. Number the classes from 0"),
    "float labels": (bert, IDS, FLOATS, r"problem_type='multi_label_classification'.*float32 \[\d\].*pass y.long\(\)"),
    "one-hot labels": (bert, IDS, HOT, r"shape \[\d\], one for each sample.*y.float\(\).*y.argmax\(1\)"),
    "integers for several labels": (several_labels, IDS, HOT, r"expects labels as floats.*Pass y.float\(\)"),
    "long text": (
        bert,
        LONG,
        LABELS[:4],
        r"40 tokens.*at most 32 \(config.max_position_embeddings=32\).*max_length=32",
    ),
    "long text of gpt2": (gpt2, LONG, LONG, r"at most 32 \(config.n_positions=32\).*truncation=True"),
    "positions after the padding": (roberta, LONG[:, :32], LABELS[:4], r"32 tokens.*at most 30 .*max_length=30"),
    "tokens": (bert, IDS + 40, LABELS, r"has the tokens 0 to 49 \(config.vocab_size=50\).*resize_token_embeddings"),
    "labels of tokens": (
        gpt2,
        IDS,
        IDS + 40,
        r"labels 0 to 49 \(config.vocab_size=50\).*Use the tokenizer of this model",
    ),
    "labels of texts": (gpt2, IDS, LABELS, r"shape \[\d+, 10\], one for each token, received int64 \[\d\]"),
    "float tokens": (gpt2, IDS, IDS.float(), r"class numbers as int64, received float32.*y.long\(\)"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_errors_of_a_loss_in_the_model_name_the_fix(kind):
    network, x, y, message = WRONG[kind]
    model = compiled(network())
    with pytest.raises((ValueError, TypeError, IndexError), match=message):
        model.fit(x, y, batch_size=4, verbose=0)
    with pytest.raises((ValueError, TypeError, IndexError), match=message):
        model.evaluate(x, y, verbose=0)


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0))


def test_a_model_with_a_decoder_is_exported_or_names_its_inputs(tmp_path):
    model = compiled(t5())
    with pytest.raises(ValueError, match=r"decoder_input_ids.*prepare_decoder_input_ids_from_labels.*generate"):
        model.predict({"input_ids": IDS}, verbose=0)
    with pytest.raises(ValueError, match="needs decoder_input_ids"):
        model.export(tmp_path / "net.pt2", {"input_ids": IDS})
    model.fit({"input_ids": IDS, "labels": IDS[:, :6]}, batch_size=7, verbose=0)
    program = torch.export.load(model.export(tmp_path / "net.pt2")).module()
    inputs = {"input_ids": IDS[:3], "decoder_input_ids": IDS[:3, :6]}
    expected = model.module.eval()(**inputs).logits.detach()
    torch.testing.assert_close(program(**inputs).logits, expected, rtol=0, atol=1e-5)
