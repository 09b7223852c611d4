"""Modules and batches of PyTorch Geometric, which needs seconds to be imported."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import easytorch
from easytorch import Model
from easytorch.data import batch_size
from tests.common_resume import CrashAfter, SimulatedCrash
from tests.loops import same_weights

pytestmark = [
    pytest.mark.slow,
    # torch_geometric calls it when it is imported.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning"),
]


def graphs(count=22):
    from torch_geometric.data import Data

    generator, samples = torch.Generator().manual_seed(0), []
    for i in range(count):
        size = 4 + i % 4
        edges = torch.randint(size, (2, 2 * size), generator=generator)
        x = torch.randn(size, 5, generator=generator) + i % 3
        samples.append(Data(x=x, edge_index=edges, y=torch.tensor([i % 3])))
    return samples


def full_graph():
    from torch_geometric.data import Data

    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(30, (2, 90), generator=generator)
    return Data(x=torch.randn(30, 5, generator=generator), edge_index=edges, y=torch.arange(30) % 3)


def graph_network(dropout=0.2):
    from torch_geometric.nn import GCNConv, global_mean_pool

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = GCNConv(5, 8), nn.Linear(8, 3)

        def forward(self, data):
            features = self.conv(data.x, data.edge_index).relu()
            return self.head(F.dropout(global_mean_pool(features, data.batch), dropout, self.training))

    torch.manual_seed(0)
    return Net()


def loader(shuffle=False, size=8):
    from torch_geometric.loader import DataLoader

    return DataLoader(graphs(), size, shuffle=shuffle)


def compiled(net, loss="cross_entropy", **options):
    return Model(net, device="cpu").compile("adam", loss, lr=0.01, metrics=["accuracy"], **options)


def test_graph_classification_equals_the_hand_written_loop():
    net = graph_network()
    plain = copy.deepcopy(net)
    torch.manual_seed(1)
    history = compiled(net).fit(loader(shuffle=True), epochs=2, verbose=0)
    torch.manual_seed(1)
    optimizer, means = torch.optim.Adam(plain.parameters(), 0.01, fused=True), []
    batches = loader(shuffle=True)
    for _ in range(2):
        total = 0.0
        for data in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(plain(data), data.y)
            loss.backward()
            optimizer.step()
            total += loss.item() * data.num_graphs
        means.append(total / 22)
    assert same_weights(net, plain)
    assert history["loss"] == pytest.approx(means, abs=1e-6)


def test_graphs_are_split_weighted_checked_and_reported(tmp_path):
    model = compiled(graph_network())
    history = model.fit(loader(), validation_split=0.3, class_weight="balanced", verbose=0)
    assert "val_accuracy" in history
    assert "no problems" in str(model.check(loader()))
    assert "accuracy" in str(model.report(loader(), bootstrap=0))
    assert model.find_lr(loader(), updates=40, runs=0).suggestion > 0
    assert "labels" in str(model.explain(loader()))
    assert model.predict(loader(), verbose=0).shape == (22, 3)
    twin = Model(graph_network(), device="cpu").load(model.save(tmp_path / "model.pt"))
    assert list(twin.evaluate(loader(), verbose=0)) == list(model.evaluate(loader(), verbose=0))


def test_a_run_on_graphs_is_resumed(tmp_path):
    def fit(**options):
        torch.manual_seed(3)
        model = compiled(graph_network())
        model.fit(loader(shuffle=True), epochs=3, verbose=0, **options)
        return model

    with pytest.raises(SimulatedCrash):
        fit(resume=tmp_path, callbacks=[easytorch.callbacks.BackupAndRestore(tmp_path, save_freq=1), CrashAfter(5)][1:])
    resumed, expected = fit(resume=tmp_path), fit()
    assert same_weights(resumed.module, expected.module)
    assert resumed.history["loss"] == expected.history["loss"]


def test_the_data_object_of_a_full_graph_and_its_masks():
    from torch_geometric.nn import GCN

    graph = full_graph()
    graph.train_mask, graph.val_mask = torch.arange(30) < 10, torch.arange(30) > 20
    torch.manual_seed(0)
    net = GCN(5, 8, 2, 3)  # forward(x, edge_index, edge_weight=None, ...)
    plain = copy.deepcopy(net)
    with pytest.raises(ValueError, match="train_mask, val_mask"):
        compiled(net).fit([graph], verbose=0)

    def masked(mask):
        view = graph.clone()
        view.y = torch.where(mask, graph.y, -100)
        del view.train_mask, view.val_mask
        return view

    model = compiled(net)
    history = model.fit([masked(graph.train_mask)], epochs=3, validation_data=[masked(graph.val_mask)], verbose=0)
    optimizer = torch.optim.Adam(plain.parameters(), 0.01, fused=True)
    for _ in range(3):
        loss = F.cross_entropy(plain(graph.x, graph.edge_index)[graph.train_mask], graph.y[graph.train_mask])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert same_weights(net, plain)
    assert history["loss"][-1] == pytest.approx(loss.item(), abs=1e-6)
    outputs = plain.eval()(graph.x, graph.edge_index).detach()
    val_loss = F.cross_entropy(outputs[graph.val_mask], graph.y[graph.val_mask]).item()
    assert history["val_loss"][-1] == pytest.approx(val_loss, abs=1e-6)
    assert torch.equal(torch.from_numpy(model.predict([graph.clone()], verbose=0)), outputs)


def test_node_labels_of_batched_graphs_count_nodes():
    from torch_geometric.data import Batch
    from torch_geometric.nn import GCN

    samples = graphs(6)
    for graph in samples:
        graph.y = torch.arange(graph.num_nodes) % 3
    batches = [Batch.from_data_list(samples[:4]), Batch.from_data_list(samples[4:])]
    assert [batch_size(batch) for batch in batches] == [sum(g.num_nodes for g in samples[:4]), 9]
    torch.manual_seed(0)
    net = GCN(5, 8, 2, 3)
    loss = compiled(net).evaluate(batches, verbose=0)["loss"]
    whole = Batch.from_data_list(samples)
    assert loss == pytest.approx(F.cross_entropy(net(whole.x, whole.edge_index), whole.y).item(), abs=1e-6)


def test_link_prediction_uses_the_labels_of_edges():
    from torch_geometric.nn import GCN
    from torch_geometric.transforms import RandomLinkSplit

    class Links(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = GCN(5, 8, 2, 4)

        def forward(self, data):
            z = self.encoder(data.x, data.edge_index)
            return (z[data.edge_label_index[0]] * z[data.edge_label_index[1]]).sum(-1)

    torch.manual_seed(0)
    train, val, _ = RandomLinkSplit(num_val=0.2, num_test=0.1)(full_graph())
    net = Links()
    plain = copy.deepcopy(net)
    history = compiled(net, "bce_with_logits").fit([train], epochs=2, validation_data=[val], verbose=0)
    optimizer = torch.optim.Adam(plain.parameters(), 0.01, fused=True)
    for _ in range(2):
        loss = F.binary_cross_entropy_with_logits(plain(train), train.edge_label)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    # The kernels of scatter on a CPU depend on the alignment of memory in the last bit.
    torch.testing.assert_close(net.state_dict(), plain.state_dict(), rtol=0, atol=1e-6)
    assert history["val_loss"][-1] == pytest.approx(
        F.binary_cross_entropy_with_logits(plain.eval()(val), val.edge_label).item(), abs=1e-6
    )


def test_several_data_objects_without_labels_name_what_is_missing():
    from torch_geometric.data import Data

    with pytest.raises(ValueError, match="needs targets"):
        compiled(graph_network()).fit([Data(x=torch.randn(3, 5), edge_index=torch.zeros(2, 0).long())], verbose=0)


def train_in_rank(size):
    model = Model(graph_network(dropout=0.0), device="cpu").compile(
        "sgd", "cross_entropy", lr=0.1, metrics=["accuracy"]
    )
    history = model.fit(loader(size=size), epochs=2, validation_data=loader(), verbose=0)
    return history.history, model.predict(loader(), verbose=0), dict(model.module.state_dict())


@pytest.mark.distributed
def test_two_processes_equal_one_with_twice_the_batch():
    (history, outputs, weights), _ = easytorch.launch(train_in_rank, 4, timeout=120)
    expected_history, expected_outputs, expected_weights = train_in_rank(8)
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=1e-6)
    assert outputs == pytest.approx(expected_outputs, abs=1e-5)
    assert history["val_accuracy"] == expected_history["val_accuracy"]
    assert history["loss"] == pytest.approx(expected_history["loss"], abs=1e-6)


def test_a_loader_of_torch_names_that_of_graphs():
    from torch.utils.data import DataLoader

    model = Model(nn.Linear(5, 3), device="cpu").compile("sgd", "cross_entropy", lr=0.1)
    with pytest.raises(TypeError, match=r"is a graph, .*torch_geometric.loader.DataLoader\(dataset"):
        model.fit(DataLoader(graphs(), 4), verbose=0)
    with pytest.raises(TypeError, match="is a graph"):
        model.predict(DataLoader(graphs(), 4), verbose=0)
