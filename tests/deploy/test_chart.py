"""What the chart promises, read from what helm renders."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Render = Callable[..., dict[str, dict[str, Any]]]
Refusal = Callable[..., str]
REPOSITORY = Path(__file__).resolve().parents[2]


def container(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The one container of the Deployment."""
    (only,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    return only


def test_the_default_is_one_pod_on_a_claim_of_its_own(render: Render) -> None:
    objects = render()
    assert set(objects) == {
        "ConfigMap",
        "Deployment",
        "PersistentVolumeClaim",
        "Pod",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    }
    spec = objects["Deployment"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    claim = objects["PersistentVolumeClaim"]
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    volumes = {volume["name"]: volume for volume in spec["template"]["spec"]["volumes"]}
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert objects["ConfigMap"]["data"]["HEADWAY_STORE"] == "sqlite+aiosqlite:////data/headway.db"
    assert all(thing["metadata"]["namespace"] == "apps" for thing in objects.values())


def test_the_three_probes_are_distinct(render: Render) -> None:
    probes = {name: container(render())[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {"startup": "/v2/health/ready", "liveness": "/v2/health/live", "readiness": "/v2/health/ready"}
    budgets = {name: probe["periodSeconds"] * probe["failureThreshold"] for name, probe in probes.items()}
    assert budgets["readiness"] < budgets["liveness"] < budgets["startup"]
    assert budgets["startup"] >= 300


@pytest.mark.parametrize("values", ["default", "postgresql", "gpu"])
def test_no_pod_can_do_more_than_it_needs(render: Render, values: str, request: pytest.FixtureRequest) -> None:
    objects = render(*(() if values == "default" else request.getfixturevalue(values)))
    for pod in (objects["Deployment"]["spec"]["template"]["spec"], objects["Pod"]["spec"]):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        for each in pod["containers"] + pod.get("initContainers", []):
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
    assert objects["ServiceAccount"]["automountServiceAccountToken"] is False


def test_the_platform_may_choose_the_user_but_not_root(render: Render, refusal: Refusal) -> None:
    context = render("--set", "security.userId=null")["Deployment"]["spec"]["template"]["spec"]["securityContext"]
    assert context == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert "userId" in refusal("--set", "security.userId=0")


def test_service_and_test_hook_agree_on_ports_and_the_hook_is_not_served(render: Render) -> None:
    objects = render("--set", "service.port=80,service.metricsPort=9191")
    ports = {port["name"]: (port["port"], port["targetPort"]) for port in objects["Service"]["spec"]["ports"]}
    assert ports == {"http": (80, "http"), "metrics": (9191, "metrics")}
    assert {port["name"]: port["containerPort"] for port in container(objects)["ports"]} == {
        "http": 8000,
        "metrics": 9090,
    }
    urls = objects["Pod"]["spec"]["containers"][0]["command"][3:]
    assert urls == ["http://rel-headway:80/v2/health/ready", "http://rel-headway:9191/metrics"]
    selector = objects["Service"]["spec"]["selector"].items()
    assert selector <= objects["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    assert not selector <= objects["Pod"]["metadata"]["labels"].items()


def test_the_pod_has_longer_to_leave_than_the_drain_takes(render: Render) -> None:
    def times(*arguments: str) -> tuple[int, int, int]:
        objects = render(*arguments)
        (_, sleep) = container(objects)["lifecycle"]["preStop"]["exec"]["command"]
        grace = objects["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        return int(sleep), int(objects["ConfigMap"]["data"]["HEADWAY_DRAIN_SECONDS"]), grace

    assert times() == (5, 20, 35)
    assert times("--set", "config.drainSeconds=60") == (5, 60, 75)
    assert "lifecycle" not in container(render("--set", "preStopSeconds=0"))


def test_settings_left_alone_are_the_services_own(render: Render) -> None:
    assert set(render()["ConfigMap"]["data"]) == {
        "HEADWAY_HOST",
        "HEADWAY_PORT",
        "HEADWAY_METRICS_PORT",
        "HEADWAY_STORE",
        "HEADWAY_DEVICE",
        "HEADWAY_FRONTENDS",
        "HEADWAY_DRAIN_SECONDS",
        "HEADWAY_LOG_LEVEL",
    }


def test_large_numbers_stay_numbers_and_an_edit_restarts_the_pods(render: Render) -> None:
    def checksum(objects: dict[str, dict[str, Any]]) -> str:
        return objects["Deployment"]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    objects = render("--set", "config.maxBodyBytes=67108864,config.extra.HEADWAY_OTHER=1")
    assert objects["ConfigMap"]["data"]["HEADWAY_MAX_BODY_BYTES"] == "67108864"
    assert objects["ConfigMap"]["data"]["HEADWAY_OTHER"] == "1"
    assert checksum(objects) != checksum(render()) == checksum(render("--set", "service.port=80"))


def test_every_setting_of_chart_and_image_is_one_of_the_service(render: Render) -> None:
    settings = pytest.importorskip("service.config", reason="the package is not installed").Settings
    known = {f"HEADWAY_{name}".upper(): field for name, field in settings.model_fields.items()}
    numbers = ("threads", "queueRows", "maxBatch", "maxBodyBytes", "residentHeads", "maxDelayUs")
    everything = ",".join(f"config.{name}=2048" for name in numbers)
    everything += ",models.existingClaim=bundles,config.headBankBytes=65536,config.dispatch=inline"
    data = render("--set", everything)["ConfigMap"]["data"]
    assert len(data) >= 16
    assert set(data) <= set(known)
    image = set(re.findall(r"\bHEADWAY_[A-Z_]+(?==)", (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")))
    assert {"HEADWAY_STORE", "HEADWAY_DEVICE"} <= image <= set(known)
    settings(**{name.removeprefix("HEADWAY_").lower(): value for name, value in data.items()})


def test_the_schema_keeps_settings_of_the_chart_out_of_the_free_ones(render: Render) -> None:
    schema = json.loads((REPOSITORY / "helm" / "headway" / "values.schema.json").read_text(encoding="utf-8"))
    free = schema["properties"]["config"]["properties"]["extra"]["propertyNames"]["not"]["enum"]
    assert free == schema["properties"]["extraEnv"]["items"]["properties"]["name"]["not"]["enum"]
    assert set(render()["ConfigMap"]["data"]) <= set(free)


def test_one_pod_never_blocks_a_node_drain(render: Render, refusal: Refusal) -> None:
    spec = render()["PodDisruptionBudget"]["spec"]
    assert spec["maxUnavailable"] == 1
    assert "minAvailable" not in spec
    assert "maxUnavailable" in refusal("--set", "podDisruptionBudget.maxUnavailable=0")


def test_postgresql_scales_and_takes_its_url_from_the_secret(render: Render, postgresql: tuple[str, ...]) -> None:
    objects = render(*postgresql)
    assert "PersistentVolumeClaim" not in objects
    spec = objects["Deployment"]["spec"]
    assert "replicas" not in spec
    assert spec["strategy"]["type"] == "RollingUpdate"
    assert "HEADWAY_STORE" not in objects["ConfigMap"]["data"]
    (store,) = (each for each in container(objects)["env"] if each["name"] == "HEADWAY_STORE")
    assert store["valueFrom"]["secretKeyRef"] == {"name": "headway-store", "key": "store-url"}
    assert objects["ConfigMap"]["data"]["HEADWAY_KEYS"] == "/etc/headway/keys/keys.toml"
    (mount,) = (each for each in container(objects)["volumeMounts"] if each["name"] == "keys")
    assert mount == {"name": "keys", "mountPath": "/etc/headway/keys", "readOnly": True}
    (volume,) = (each for each in spec["template"]["spec"]["volumes"] if each["name"] == "keys")
    assert volume["secret"]["secretName"] == "headway-keys"
    scaler = objects["HorizontalPodAutoscaler"]["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, 12)
    assert scaler["scaleTargetRef"]["name"] == objects["Deployment"]["metadata"]["name"]
    (endpoint,) = objects["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["port"] == "metrics"
    (spread,) = spec["template"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"] == spec["selector"]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_tables_are_upgraded_before_a_pod_starts_unless_told_not_to(
    render: Render, kind: str, postgresql: tuple[str, ...]
) -> None:
    arguments = postgresql if kind == "postgresql" else ()
    objects = render(*arguments)
    (upgrade,) = objects["Deployment"]["spec"]["template"]["spec"]["initContainers"]
    assert (upgrade["args"], upgrade["image"]) == (["db", "upgrade"], container(objects)["image"])
    for part in ("env", "envFrom"):
        assert upgrade.get(part) == container(objects).get(part)
    mounts = {mount["mountPath"] for mount in upgrade["volumeMounts"]}
    assert mounts == ({"/tmp", "/data"} if kind == "sqlite" else {"/tmp"})
    spec = render(*arguments, "--set", "store.upgrade=false")["Deployment"]["spec"]["template"]["spec"]
    assert "initContainers" not in spec


def test_many_pods_are_let_in_with_postgresql_only(render: Render) -> None:
    assert render("--set", f"replicaCount=5,{POSTGRESQL}")["Deployment"]["spec"]["replicas"] == 5


def test_a_gpu_is_asked_for_and_served_by_the_cuda_image(render: Render, gpu: tuple[str, ...]) -> None:
    objects = render(*gpu)
    version = objects["Deployment"]["metadata"]["labels"]["app.kubernetes.io/version"]
    assert container(objects)["image"] == f"headway:{version}-cuda"
    assert objects["ConfigMap"]["data"]["HEADWAY_DEVICE"] == "cuda"
    assert container(objects)["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": 1}
    data = objects["ConfigMap"]["data"]
    assert (data["HEADWAY_DEVICE"], data["HEADWAY_FRONTENDS"]) == ("cuda", "1")
    data = render(*gpu, "--set", "gpu.tensorrt=true,config.frontends=3")["ConfigMap"]["data"]
    assert (data["HEADWAY_DEVICE"], data["HEADWAY_FRONTENDS"]) == ("tensorrt", "3")
    assert objects["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteOncePod"]


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ("image.registry=r.example.com/team", "r.example.com/team/headway:{release}"),
        ("image.tag=x,gpu.enabled=true", "headway:x"),
        (f"image.tag=x,image.digest=sha256:{'a' * 64}", f"headway@sha256:{'a' * 64}"),
    ],
)
def test_the_image_is_named_by_digest_then_tag_then_release(render: Render, values: str, image: str) -> None:
    objects = render("--set", values)
    release = objects["Deployment"]["metadata"]["labels"]["app.kubernetes.io/version"]
    assert container(objects)["image"] == image.format(release=release)


def test_bundles_on_a_claim_are_read_only(render: Render) -> None:
    objects = render("--set", "models.existingClaim=bundles")
    assert objects["ConfigMap"]["data"]["HEADWAY_MODELS"] == "/models"
    (mount,) = (each for each in container(objects)["volumeMounts"] if each["name"] == "models")
    assert mount == {"name": "models", "mountPath": "/models", "readOnly": True}


def test_names_hold_for_any_release(render: Render) -> None:
    assert render("--set", "fullnameOverride=hw")["Service"]["metadata"]["name"] == "hw"
    long = render("--set", f"nameOverride={'n' * 80}")["Service"]["metadata"]["name"]
    assert len(long) <= 63


POSTGRESQL = "store.kind=postgresql,store.postgresql.existingSecret=s"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ("replicaCount=2", "replicaCount is 2, but the store is SQLite"),
        ("autoscaling.enabled=true", "autoscaling.enabled is true, but the store is SQLite"),
        ("store.kind=postgresql", "existingSecret is empty"),
        ("terminationGracePeriodSeconds=25", "preStopSeconds and config.drainSeconds take 25"),
        (f"{POSTGRESQL},autoscaling.enabled=true,autoscaling.minReplicas=7", "autoscaling.minReplicas is 7"),
        (f"{POSTGRESQL},autoscaling.enabled=true,resources.requests.cpu=null", "resources.requests.cpu is not set"),
    ],
)
def test_what_would_not_hold_is_refused_in_a_sentence(refusal: Refusal, values: str, sentence: str) -> None:
    assert sentence in refusal("--set", values)


@pytest.mark.parametrize(
    "values",
    [
        "replicas=2",
        "store.kind=mysql",
        "store.sqlite.persistence.accessMode=ReadWriteMany",
        "config.logLevel=loud",
        "config.extra.HEADWAY_STORE=x",
        "config.extra.OTHER=x",
        "extraEnv[0].name=HEADWAY_STORE",
        "probes.readiness.path=/x",
        "image.digest=latest",
    ],
)
def test_the_schema_refuses_what_it_does_not_know(refusal: Refusal, values: str) -> None:
    assert "values don't meet the specifications of the schema" in refusal("--set", values)
