"""The managed node: its states, whatever happens on the way between them, and when it takes images."""

from __future__ import annotations

import random
import signal

import pytest

rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed")

from diagnostic_msgs.msg import DiagnosticStatus
from hosted import NODE
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from nodes import ending, image, labels_of, picture, running, send_and_wait, stamp
from rclpy.executors import ExternalShutdownException
from scripted import wait_until
from std_srvs.srv import Trigger
from vision_msgs.msg import Classification

from bnn_perception.ros import requests

#: Where each transition leads, from the states in which it is allowed.
GRAPH = {
    "configure": {"unconfigured": "inactive"},
    "activate": {"inactive": "active"},
    "deactivate": {"active": "inactive"},
    "cleanup": {"inactive": "unconfigured"},
}

IDS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "cleanup": Transition.TRANSITION_CLEANUP,
    "unconfigured shutdown": Transition.TRANSITION_UNCONFIGURED_SHUTDOWN,
    "inactive shutdown": Transition.TRANSITION_INACTIVE_SHUTDOWN,
    "active shutdown": Transition.TRANSITION_ACTIVE_SHUTDOWN,
}


class Managed:
    """A lifecycle manager of the node."""

    def __init__(self, peer):
        self._peer = peer

    def set(self, transition):
        """Ask for a transition as `ros2 lifecycle set` does; whether it succeeded."""
        before = self.state
        request = ChangeState.Request(transition=Transition(id=IDS[transition]))
        answer = self._peer.call(ChangeState, f"{NODE}/change_state", request, again=None)
        return answer.success if answer is not None else self.state != before

    @property
    def state(self):
        return self._peer.call(GetState, f"{NODE}/get_state", GetState.Request()).current_state.label

    def health(self):
        """What the node answers a supervisor: whether all is well, and in words."""
        answer = self._peer.call(Trigger, f"{NODE}/health", Trigger.Request())
        return answer.success, answer.message


@pytest.fixture
def manager(peer):
    return Managed(peer)


def subscribers(peer, topic="/bnn/image"):
    return peer.node.count_subscribers(topic)


def answers_red(peer, hosted):
    camera = hosted.camera()
    send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)
    assert labels_of(hosted.answers[-1]) == ["red"]


# Transitions.


def test_an_unmanaged_node_is_active(host, manager):
    host()
    assert manager.state == "active"


def test_each_state_holds_what_it_should(peer, machine, patient, host, manager):
    hosted = host(backend="binary", autostart=False)
    hosted.says("unconfigured", DiagnosticStatus.OK)
    topics = dict(peer.node.get_topic_names_and_types())
    assert manager.state == "unconfigured"
    assert (subscribers(peer), machine.made, peer.node.count_publishers("/bnn/label_info")) == (0, 0, 0)
    assert "/diagnostics" in topics
    assert manager.set("configure")
    hosted.says("inactive", DiagnosticStatus.OK)
    assert hosted.diagnostics.values["model"] == "red-green-blue"
    assert (subscribers(peer), machine.made) == (0, 0)
    peer.until(lambda: peer.node.count_publishers("/bnn/label_info") == 1)
    assert manager.set("activate")
    hosted.says("OK", DiagnosticStatus.OK)
    peer.until(lambda: subscribers(peer) == 1 and hosted.infos)
    hosted.camera()
    classified = hosted.diagnostics.frames("classified")
    assert manager.set("deactivate")
    hosted.says("inactive", DiagnosticStatus.OK)
    peer.until(lambda: subscribers(peer) == 0 and not machine.open)
    assert (hosted.diagnostics.values["backend"], hosted.diagnostics.values["state"]) == ("none", "inactive")
    assert hosted.diagnostics.frames("classified") >= classified  # they go on from here
    assert manager.set("cleanup")
    hosted.says("unconfigured", DiagnosticStatus.OK)
    peer.until(lambda: peer.node.count_publishers("/bnn/label_info") == 0)
    assert manager.set("unconfigured shutdown")
    hosted.says("finalized", DiagnosticStatus.OK)
    assert not manager.set("configure")


def test_any_order_of_transitions_leads_where_it_should(peer, host, manager):
    hosted = host(autostart=False)
    generator = random.Random(4)
    state = "unconfigured"
    for _ in range(40):
        transition = generator.choice(list(GRAPH))
        expected = GRAPH[transition].get(state)
        assert manager.set(transition) == (expected is not None), (state, transition)
        state = expected or state
        assert manager.state == state
    for transition in ("cleanup", "deactivate", "cleanup", "configure", "activate"):
        manager.set(transition)
    assert manager.state == "active"
    answers_red(peer, hosted)
    assert hosted.diagnostics.values["unexpected errors"] == "0"


def test_any_state_can_be_shut_down(peer, host, manager, machine, patient):
    hosted = host(backend="binary", autostart=True)
    assert manager.set("active shutdown")
    assert manager.state == "finalized"
    hosted.says("finalized", DiagnosticStatus.OK)
    peer.until(lambda: subscribers(peer) == 0 and not machine.open)


def test_a_model_that_cannot_be_read_refuses_to_be_configured(peer, host, manager, english):
    hosted = host(model="/nowhere", autostart=False)
    assert not manager.set("configure")
    assert manager.state == "unconfigured"
    hosted.says("cannot be configured: /nowhere", DiagnosticStatus.ERROR)
    healthy, text = manager.health()
    assert not healthy
    assert "cannot be configured: /nowhere" in text
    hosted.set(model=str(english))
    assert manager.set("configure")
    assert manager.set("activate")
    answers_red(peer, hosted)
    hosted.says("OK", DiagnosticStatus.OK)


def test_an_engine_that_cannot_be_made_leaves_the_node_inactive(peer, host, manager, machine, patient):
    machine.gpu_works = False
    hosted = host(backend="binary", device="cuda", autostart=False)
    assert manager.set("configure")
    assert manager.set("activate")
    hosted.says("no usable GPU", DiagnosticStatus.ERROR)
    assert manager.state == "inactive"
    assert manager.health() == (False, "no usable GPU; inactive")
    hosted.set(device="cpu")
    assert manager.set("activate")
    hosted.says("OK", DiagnosticStatus.OK)
    assert manager.health()[0]


def test_an_exception_that_nobody_foresaw_costs_the_transition(peer, host, manager, monkeypatch):
    hosted = host(autostart=False)
    with monkeypatch.context() as broken:
        broken.setattr(requests, "load_model", lambda _: 1 / 0)
        assert not manager.set("configure")
    assert manager.state == "unconfigured"
    hosted.says("cannot be configured: unexpected error: ZeroDivisionError", DiagnosticStatus.ERROR)
    assert manager.set("configure")
    assert manager.set("activate")
    answers_red(peer, hosted)


def test_an_engine_that_is_being_made_is_given_up(peer, host, manager, machine, slow, patient):
    hosted = host(backend="binary", autostart=False)
    assert manager.set("configure")
    assert manager.set("activate")
    peer.until(lambda: machine.made == 1)
    assert manager.set("deactivate")
    slow.set()
    wait_until(lambda: machine.closed == ["cpu_binary"])
    assert (machine.open, hosted.infos) == ([], [])
    assert manager.set("activate")
    peer.until(lambda: hosted.infos)
    assert len(machine.open) == 1


def test_a_failed_engine_is_not_made_anew_while_inactive(peer, host, manager, machine, patient):
    hosted = host(backend="binary", device="cuda")
    camera = hosted.camera()
    machine.gpu_works = False
    peer.send(camera, image(picture("red", 4, 4)))
    hosted.says("no answers", DiagnosticStatus.ERROR)
    assert manager.set("deactivate")
    machine.gpu_works = True
    made = machine.made
    peer.work(1.5)  # longer than the pause before a new try
    assert (machine.made, machine.open) == (made, [])
    assert manager.set("activate")
    hosted.says("OK", DiagnosticStatus.OK)
    send_and_wait(peer, hosted.camera(), image(picture("red", 4, 4)), hosted.answers)


def test_parameters_that_are_set_while_inactive_hold_from_the_activation_on(
    peer, host, manager, english, german
):
    hosted = host(model=english)
    assert manager.set("deactivate")
    hosted.set(model=str(german))
    (result,) = peer.set_parameters(NODE, model="/nowhere")
    assert not result.successful
    assert manager.set("activate")
    peer.until(lambda: hosted.labels()[0] == "rot")
    assert hosted.get("model") == [str(german)]


def test_transitions_under_load_lose_nothing_but_frames(peer, host, manager):
    """A camera sends on while the node goes through its states; every answer has its own frame's stamp."""
    hosted = host()
    camera = hosted.camera()
    sent = set()

    def send():
        sent.add(peer.send(camera, image(picture("red", 4, 4))))

    for transition in ("deactivate", "activate") * 4 + ("deactivate", "cleanup", "configure", "activate"):
        for _ in range(5):
            send()
            peer.work(0.01)
        assert manager.set(transition)
    hosted.answers.clear()

    def answered():
        send()
        peer.work(0.02)
        return len(hosted.answers) > 3

    peer.until(answered)
    assert {stamp(answer) for answer in hosted.answers} <= sent
    hosted.says("OK", DiagnosticStatus.OK)
    assert hosted.diagnostics.values["unexpected errors"] == "0"


@pytest.mark.parametrize("state", ["unconfigured", "inactive", "active", "finalized"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_node_in_every_state(peer, manager, english, state, number):
    way = {
        "unconfigured": (),
        "inactive": ("configure",),
        "active": ("configure", "activate"),
        "finalized": ("configure", "activate", "active shutdown"),
    }
    with running("classifier_node", f"model:={english}", "backend:=reference", "autostart:=false") as process:
        for transition in way[state]:
            assert manager.set(transition)
        assert manager.state == state
        process.send_signal(number)
        output, code = ending(process)
    assert code == 0, output
    assert "Traceback" not in output
    assert "rror" not in output


# Whether images are taken.


def test_a_lazy_node_takes_images_while_somebody_takes_its_answers(peer, host, monkeypatch):
    hosted = host(lazy=True)  # the labels are subscribed by the test
    peer.until(lambda: subscribers(peer) == 1)
    for subscription in list(peer.node.subscriptions):
        if subscription.topic_name == "/bnn/labels":
            peer.node.destroy_subscription(subscription)
    peer.until(lambda: subscribers(peer) == 0)
    hosted.says("idle: nobody subscribes the answers (lazy)", DiagnosticStatus.OK)
    assert hosted.diagnostics.values["backend"] == "reference"  # stays ready
    hosted.answers = peer.subscribe(Classification, "/bnn/labels")
    answers_red(peer, hosted)
    hosted.set(lazy=False)
    hosted.says("OK", DiagnosticStatus.OK)


def test_a_node_that_is_not_enabled_takes_no_images(peer, host):
    hosted = host(enabled=False)
    hosted.says("idle: enabled is false", DiagnosticStatus.OK)
    assert subscribers(peer) == 0
    hosted.set(enabled=True)
    answers_red(peer, hosted)
    hosted.set(enabled=False)
    peer.until(lambda: subscribers(peer) == 0)


def test_no_more_frames_are_answered_than_wanted(peer, host, patient):
    hosted = host(max_rate=1e-3)  # one in a thousand seconds
    camera = hosted.unanswered()
    peer.until(lambda: camera.get_subscription_count())
    while not hosted.answers:
        peer.send(camera, image(picture("red", 4, 4)))
        peer.work(0.05)
    hosted.diagnostics.from_now_on()
    for count in range(1, 4):
        peer.send(camera, image(picture("red", 4, 4)))
        hosted.diagnostics.until(
            lambda status, values: hosted.diagnostics.frames("skipped by max_rate") == count  # noqa: B023
        )
    assert len(hosted.answers) == 1
    hosted.set(max_rate=0.0)
    send_and_wait(peer, camera, image(picture("red", 4, 4)), hosted.answers)


# What a supervisor asks.


def test_health_tells_the_last_error_after_it_is_over(peer, host, manager, machine, patient):
    hosted = host(backend="binary", device="cuda")
    hosted.says("OK", DiagnosticStatus.OK)
    assert manager.health() == (True, "OK")
    camera = hosted.camera()
    machine.gpu_works = False
    peer.send(camera, image(picture("red", 4, 4)))
    hosted.says("no answers", DiagnosticStatus.ERROR)
    healthy, text = manager.health()
    assert not healthy
    assert text.startswith("no answers: ")
    machine.gpu_works = True
    hosted.says("OK", DiagnosticStatus.OK)
    healthy, text = manager.health()
    assert healthy
    assert text.startswith("OK; the last error, ")
    assert "s ago: no answers: " in text


# Limits of the user's own.


def test_a_camera_below_the_limits_is_named(peer, host, patient):
    hosted = host(image_topics=["left", "right"], min_rate=1000.0, max_age=1e-6, max_p99=1e-6)
    hosted.camera("/bnn/left")
    hosted.says("labels a second of /bnn/right, fewer than min_rate = 1000; 0.0 frames a second came")
    engine, left, right = hosted.diagnostics.statuses
    assert "more than max_p99 = 0.001 ms" in engine.message
    assert "frames of /bnn/left are up to " in left.message
    assert "more than max_age = 0.001 ms" in left.message
    assert "max_age" not in right.message  # it has no labels yet
    assert {status.level for status in hosted.diagnostics.statuses} == {DiagnosticStatus.WARN}
    hosted.set(min_rate=0.0, max_age=0.0, max_p99=0.0)
    hosted.says("OK", DiagnosticStatus.OK)


def test_each_camera_has_a_status_of_its_own(peer, host, patient):
    hosted = host(image_topics=["left", "/right"])
    camera = hosted.camera("/right")
    hosted.diagnostics.from_now_on()
    bad = image(picture("green", 4, 4))
    bad.step = 1
    peer.send(camera, bad)
    hosted.says("1 frames refused, the last on /right: step 1", DiagnosticStatus.WARN)
    names = [status.name for status in hosted.diagnostics.statuses]
    assert names == [f"{NODE}: engine", f"{NODE}: camera /bnn/left", f"{NODE}: camera /right"]
    levels = [status.level for status in hosted.diagnostics.statuses]
    assert levels == [DiagnosticStatus.OK, DiagnosticStatus.OK, DiagnosticStatus.WARN]


def test_a_signal_in_the_midst_of_a_transition_is_no_error(peer, host, monkeypatch):
    """It ends ROS between two calls into it, and the second of them says so."""
    node = host(autostart=False).node
    said = []
    monkeypatch.setattr(node, "unexpected", said.append)

    def configure():
        monkeypatch.setattr(node.context, "ok", lambda: False)
        raise RuntimeError("rcl node's context is invalid")

    monkeypatch.setattr(node, "configure", configure)
    with pytest.raises(ExternalShutdownException):
        node.start()
    assert said == []
    monkeypatch.undo()
