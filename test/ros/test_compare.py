"""Both precisions on the same frames, over real DDS: the float twin answers beside the binary net, delaying nothing."""

from __future__ import annotations

import shutil
import threading

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed")

from diagnostic_msgs.msg import DiagnosticStatus
from hosted import NODE
from nodes import image, labels_of, picture, running, send_and_wait, stamp
from scripted import PATIENCE
from std_srvs.srv import Trigger
from vision_msgs.msg import Classification

from bnn_perception.net.folder import load_model
from bnn_perception.resources import find_model
from bnn_perception.ros.compare import Comparison, file_name
from bnn_perception.ros.engine import EngineSpec
from bnn_perception.ros.parameters import EngineSettings

SIGNS = load_model(find_model("road_signs")).labels


def compare_values(hosted):
    """The values of the comparison's status; empty where there is none."""
    found = [status for status in hosted.diagnostics.statuses if status.name == f"{NODE}: compare"]
    return {item.key: item.value for status in found for item in status.values}


def send_until(peer, hosted, camera, twins):
    """Send frames until the twin answers one."""

    def answered():
        send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
        return twins

    peer.until(answered)


@pytest.fixture
def compared(peer, host, machine, patient):
    """A function that starts the node with the comparison; the node, a camera, and the twin's answers."""

    def start(**parameters):
        values = {"model": "road_signs", "backend": "binary", "compare": True, **parameters}
        hosted = host(**values)
        twins = peer.subscribe(Classification, "/bnn/labels_float")
        camera = hosted.camera()
        send_until(peer, hosted, camera, twins)
        twins.clear()
        return hosted, camera, twins

    return start


def test_both_answer_the_same_frames(peer, machine, compared):
    machine.favourites = {"cpu_binary": 3, "cpu_float": 3}
    hosted, camera, twins = compared()
    sent = send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
    peer.until(lambda: twins and stamp(twins[-1]) == sent)
    assert labels_of(twins[-1]) == labels_of(hosted.answers[-1]) == [SIGNS[3]]
    assert twins[-1].header == hosted.answers[-1].header
    hosted.diagnostics.until(lambda status, values: compare_values(hosted)["labels compared"] != "0")
    values = compare_values(hosted)
    assert (values["backend"], values["device"]) == ("cpu_float", "a stand-in cpu")
    assert values["agreement of the newest labels (%)"] == "100.000"
    assert (values["labels that differ"], values["last difference"]) == ("0", "none")


def test_what_differs_is_told_and_saved(peer, machine, compared, tmp_path):
    folder = tmp_path / "differences"
    machine.favourites = {"cpu_binary": 3, "cpu_float": 7}
    hosted, camera, _ = compared(compare_folder=str(folder))
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    sent = send_and_wait(peer, camera, image(pixels), hosted.answers)

    def saved():
        answer = peer.call(Trigger, f"{NODE}/save_difference", Trigger.Request())
        return answer.success and str(sent)[:10] in answer.message and answer.message

    peer.until(saved)
    (file,) = [f for f in folder.iterdir() if f.name.startswith(f"{sent // 10**9}.{sent % 10**9:09d}")]
    np.testing.assert_array_equal(cv2.imread(str(file))[..., ::-1], pixels)
    hosted.diagnostics.until(lambda status, values: compare_values(hosted)["labels that differ"] != "0")
    values = compare_values(hosted)
    assert values["last difference"] == f"{SIGNS[3]} (binary), {SIGNS[7]} (float)"
    assert values["labels that differ"] == values["labels compared"]
    assert values["agreement of the newest labels (%)"] == "0.000"


def test_a_twin_that_is_slow_delays_nothing(peer, machine, compared):
    hosted, camera, twins = compared()
    go_on = threading.Event()
    machine.before_logits = lambda name: name != "cpu_float" or go_on.wait(PATIENCE)
    passed_over = hosted.node._comparison.pipeline.counts.stale
    hosted.answers.clear()
    for _ in range(10):
        send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
    assert len(hosted.answers) == 10
    assert twins == []
    go_on.set()
    last = stamp(hosted.answers[-1])
    peer.until(lambda: twins and stamp(twins[-1]) == last)  # the newest, and those between passed over
    assert len(twins) == 2
    hosted.diagnostics.until(
        lambda status, values: (
            compare_values(hosted)["frames passed over for a newer one"] == str(passed_over + 8)
        )
    )


def test_a_twin_that_fails_costs_the_comparison_alone(peer, machine, compared):
    hosted, camera, twins = compared()

    def fail(name):
        if name == "cpu_float":
            machine.before_logits = lambda name: None
            raise OSError("the twin has stumbled")

    machine.before_logits = fail
    send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
    send_until(peer, hosted, camera, twins)  # made anew after a second
    assert hosted.diagnostics.values["unexpected errors"] == "0"


def test_it_is_switched_while_frames_come(peer, machine, compared):
    hosted, camera, twins = compared()
    for _ in range(4):
        hosted.set(compare=False)
        peer.until(lambda: sorted(p.name for p in machine.open) == ["cpu_binary"])
        send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
        hosted.diagnostics.until(lambda status, values: not compare_values(hosted))
        hosted.set(compare=True)
        twins.clear()
        send_until(peer, hosted, camera, twins)
    assert hosted.diagnostics.values["unexpected errors"] == "0"


def test_it_follows_the_model_and_ends_with_the_activation(peer, machine, compared, english):
    hosted, camera, twins = compared()
    hosted.set(model="vehicles")
    peer.until(lambda: len(hosted.labels()) == len(load_model(find_model("vehicles")).labels))
    twins.clear()
    send_until(peer, hosted, camera, twins)
    assert labels_of(twins[-1])[0] in load_model(find_model("vehicles")).labels
    hosted.set(model=str(english))  # it has no twin
    hosted.says("nothing is compared: model 'red-green-blue' has no float twin", DiagnosticStatus.WARN)
    send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
    hosted.set(model="road_signs")
    twins.clear()
    send_until(peer, hosted, camera, twins)
    hosted.node.trigger_deactivate()
    peer.until(lambda: machine.open == [])
    hosted.node.trigger_activate()
    twins.clear()
    camera = hosted.camera()
    send_until(peer, hosted, camera, twins)


def test_a_model_without_a_twin_ends_the_answers_of_the_old_twin(peer, machine, compared, english):
    hosted, camera, twins = compared()
    hosted.set(model=str(english))
    hosted.says("nothing is compared: model 'red-green-blue' has no float twin", DiagnosticStatus.WARN)
    peer.until(lambda: sorted(p.name for p in machine.open) == ["cpu_binary"])
    twins.clear()
    for _ in range(3):
        send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
    assert twins == []


def test_models_of_equal_labels_are_not_compared_with_one_another(peer, machine, compared, tmp_path):
    retrained = tmp_path / "retrained"
    shutil.copytree(find_model("road_signs"), retrained)
    machine.favourites = {"cpu_binary": 3, "cpu_float": 7}
    hosted, camera, twins = compared()
    hosted.diagnostics.until(lambda status, values: compare_values(hosted)["labels that differ"] != "0")
    may_be_made = threading.Event()
    machine.favourites["cpu_float"] = 3
    old_twin = hosted.node._comparison.pipeline.engine
    machine.before_making = lambda: (
        threading.current_thread().name != "comparison's loading" or may_be_made.wait(PATIENCE)
    )
    hosted.set(model=str(retrained))
    peer.until(lambda: hosted.node.pipeline.engine.spec.model is not old_twin.spec.model)
    twins.clear()
    for _ in range(3):  # the twin of the old model is still there
        send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
    assert twins == []
    may_be_made.set()
    send_until(peer, hosted, camera, twins)
    hosted.diagnostics.until(lambda status, values: compare_values(hosted)["labels compared"] != "0")
    hosted.diagnostics.until(
        lambda status, values: (
            compare_values(hosted)["agreement of the newest labels (%)"] == "100.000"
            and compare_values(hosted)["last difference"] == "none"
        )
    )


def test_no_twin_is_made_where_it_is_switched_off_while_engines_change(peer, machine, monkeypatch):
    """The inference thread follows its engine while the executor's stops the comparison."""
    spec = EngineSpec(EngineSettings(), load_model(find_model("road_signs")))
    comparison = Comparison(peer.node, ["/bnn/image"], print, print)
    ending = threading.Thread(target=comparison.stop, args=(PATIENCE,))

    def check(*_):
        ending.start()
        ending.join(0.2)  # time enough to overtake

    monkeypatch.setattr("bnn_perception.ros.compare.check_choice", check)
    try:
        comparison.start()
        comparison.follow(spec)
        ending.join(PATIENCE)
        before = machine.made
        comparison.follow(spec)
        peer.work(0.3)
        assert comparison.pipeline.engine is None
        assert machine.made == before
    finally:
        comparison.close(PATIENCE)


def test_a_twin_that_cannot_answer_is_told(peer, machine, compared):
    hosted, camera, twins = compared()

    def fail(name):
        if name == "cpu_float":
            raise OSError("the twin has stumbled")

    machine.before_logits = fail
    send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
    hosted.says("nothing is compared: ", DiagnosticStatus.WARN)
    hosted.says("the twin has stumbled", DiagnosticStatus.WARN)
    machine.before_logits = lambda name: None
    send_until(peer, hosted, camera, twins)
    hosted.diagnostics.until(lambda status, values: "nothing is compared" not in status.message)


def test_a_lazy_node_wakes_for_the_twin_and_unknown_is_told_by_both(peer, machine, compared):
    hosted, camera, twins = compared(unknown_label="none of these", score_threshold=0.9)
    sent = send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
    peer.until(lambda: twins and stamp(twins[-1]) == sent)
    assert labels_of(twins[-1]) == labels_of(hosted.answers[-1]) == ["none of these"]
    hosted.set(lazy=True)
    for subscription in [s for s in peer.node.subscriptions if s.topic_name == "/bnn/labels"]:
        peer.node.destroy_subscription(subscription)
    twins.clear()

    def answered():
        camera.publish(image(picture("red", 4, 4)))
        return hosted.node.count_subscribers("/bnn/labels") == 0 and twins

    peer.until(answered)
    assert "idle" not in hosted.diagnostics.status.message


def test_the_file_of_a_difference_has_a_name_that_any_disk_takes():
    name = file_name(1, 2, "\N{CJK UNIFIED IDEOGRAPH-8DEF}" * 60, "../../etc/passwd\0")
    assert len(name.encode()) < 200
    assert name.startswith("1.000000002_")
    assert name.endswith("_-etc-passwd-.png")
    assert "/" not in name


def test_what_cannot_be_compared_is_refused(peer, host, machine, patient):
    hosted = host(backend="binary")  # a model without a twin
    for values, reason in (
        ({"compare": True}, "model 'red-green-blue' has no float twin"),
        ({"compare_folder": "/tmp"}, "read-only"),
    ):
        (result,) = peer.set_parameters(NODE, **values)
        assert not result.successful
        assert reason in result.reason
    hosted.set(model="road_signs")
    hosted.set(compare=True)
    (result,) = peer.set_parameters(NODE, backend="float")
    assert "backend is float, set it to binary" in result.reason
    answer = peer.call(Trigger, f"{NODE}/save_difference", Trigger.Request())
    assert (answer.success, answer.message) == (
        False,
        "compare_folder is empty; start with one to save pictures",
    )


def test_the_shipped_nets_agree_on_the_rendered_scene(peer):
    """The real engines, in a process of their own that Ctrl-C ends."""
    from nodes import ending

    from bnn_perception.scenes.drive import Scene

    answers = peer.subscribe(Classification, "/bnn/labels")
    twins = peer.subscribe(Classification, "/bnn/labels_float")
    scene = Scene(0)
    region = f"region:={list(Scene.region)}"
    with running("classifier_node", region, "device:=cpu", "compare:=true") as process:
        camera = peer.camera(image(scene.next()[0]), "/bnn/image", answers)
        while len(twins) < 40:
            send_and_wait(peer, camera, image(scene.next()[0]), answers)
        process.send_signal(2)
        output, code = ending(process)
    assert code == 0, output
    assert "Traceback" not in output
    binary = {stamp(answer): labels_of(answer) for answer in answers}
    equal = [labels_of(twin) == binary[stamp(twin)] for twin in twins if stamp(twin) in binary]
    assert len(equal) >= 30
    assert sum(equal) >= 0.9 * len(equal)
