"""Checks of the chart and of the image that need more than a command; validate.sh and chart.sh run them."""

import json
import re
import sys
import tomllib
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CHART = ROOT / "deploy/helm/capture-worker"

# Kinds that kubernetes-validate has schemas for, and kinds of other operators that the chart may render.
CORE = {
    "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "Pod", "PodDisruptionBudget", "Service",
    "ServiceAccount",
}
CUSTOM = {
    "keda.sh/v1alpha1": {"ScaledObject", "TriggerAuthentication"},
    "monitoring.coreos.com/v1": {"PodMonitor", "PrometheusRule", "ServiceMonitor"},
}
# No package has models of these: `topology` compares them with the program, field by field.
TOPOLOGY = {"rabbitmq.com/v1beta1": {"Binding", "Exchange", "Permission", "Policy", "Queue"}}
# Where the chart differs from the program's default on purpose, and why.
DIFFERENT = {"http.listen": "probes and scrapes come from outside the pod"}
SECRETS = {
    "broker.url", "broker.url_file", "redis.url", "redis.url_file", "gateway.private_key", "gateway.private_key_file",
    "gateway.public_key", "gateway.public_key_file", "gateway.agent_token", "gateway.proxy", "gateway.proxy_file",
    "redis.sentinel_password", "redis.sentinel_password_file",
} | {f"{s}.{k}" for s in ("broker", "redis") for k in ("ca_file", "client_cert_file", "client_key_file")}


class Wrong(Exception):
    """A check that failed."""


def must(holds, text):
    if not holds:
        raise Wrong(text)


def documents(path):
    return [document for document in yaml.safe_load_all(Path(path).read_text()) if document]


def defaults():
    """The program's defaults, and all keys that config/default.toml documents, commented out or not."""
    text = (ROOT / "config/default.toml").read_text()
    flat = {f"{s}.{k}": v for s, keys in tomllib.loads(text).items() for k, v in keys.items()}
    section, known = "", set()
    for line in text.splitlines():
        if found := re.fullmatch(r"\[(\w+)\]", line.strip()):
            section = found[1]
        elif found := re.match(r"(?:# )?([a-z_]+) = ", line):
            known.add(f"{section}.{found[1]}")
    return flat, known


def seconds(text):
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
    return sum(int(n) * units[unit] for n, unit in re.findall(r"(\d+)(ms|[smhd])", text))


def split(rendered, folder):
    """Sorts rendered objects into core.yaml and custom.json; an unlisted kind is an error, so that none stays unchecked."""
    core, custom, topology = [], [], 0
    for document in documents(rendered):
        kind, version = document["kind"], document["apiVersion"]
        if kind in CUSTOM.get(version, ()):
            custom.append(document)
        elif kind in TOPOLOGY.get(version, ()):
            topology += 1
        else:
            must(kind in CORE, f"{rendered}: {version} {kind} is in none of CORE, CUSTOM, TOPOLOGY: add it to one of them")
            core.append(document)
        if kind == "PrometheusRule":
            (Path(folder) / "rules.yaml").write_text(yaml.safe_dump(document["spec"]))
        if kind == "ConfigMap" and "settings.toml" in document["data"]:
            (Path(folder) / "settings.toml").write_text(document["data"]["settings.toml"])
    (Path(folder) / "core.yaml").write_text(yaml.safe_dump_all(core))
    (Path(folder) / "custom.json").write_text(json.dumps(custom))
    return f"{len(core)} core objects, {len(custom)} of other operators, {topology} of RabbitMQ's"


def dashboard(rendered):
    """The ConfigMap holds the dashboard's file unchanged; panels have unique ids and don't overlap."""
    file = json.loads((CHART / "dashboards/capture-worker.json").read_text())
    (found,) = [d for d in documents(rendered) if d["kind"] == "ConfigMap" and "capture-worker.json" in d["data"]]
    must(json.loads(found["data"]["capture-worker.json"]) == file, f"{rendered}: the dashboard differs from its file")
    must(found["metadata"]["labels"]["grafana_dashboard"] == "1", "Grafana's sidecar would not find the dashboard: the label grafana_dashboard is missing")
    panels = file["panels"]
    must(len({panel["id"] for panel in panels}) == len(panels), "two panels have the same id")
    taken = [(x, y) for g in (panel["gridPos"] for panel in panels)
             for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])]
    must(len(taken) == len(set(taken)) and max(x for x, _ in taken) < 24, "panels overlap, or exceed 24 columns")
    return f"{len(panels)} panels"


def image():
    """The Dockerfile's labels are Cargo.toml's, its user is the chart's, and the compose file needs no shell in the image."""
    package = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
    text = (ROOT / "deploy/Dockerfile").read_text()
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', text[:text.index("AS demo")]))
    wanted = {"title": package["name"], "description": package["description"], "licenses": package["license"],
              "version": "$VERSION", "source": "$SOURCE"}
    must(labels == wanted, f"deploy/Dockerfile has the labels {labels}, Cargo.toml wants {wanted}")
    versions = set(re.findall(r"^ARG VERSION=(.*)$", text, re.M))
    must(versions == {package["version"]}, f"deploy/Dockerfile has the version {versions}, Cargo.toml {package['version']}")
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    must(chart["appVersion"] == package["version"],
         f"Chart.yaml has the appVersion {chart['appVersion']}, Cargo.toml {package['version']}")
    pod = yaml.safe_load((CHART / "values.yaml").read_text())["podSecurityContext"]
    users = set(re.findall(r"^USER (.*)$", text, re.M))
    must(users == {f"{pod['runAsUser']}:{pod['runAsGroup']}"}, f"deploy/Dockerfile runs as {users}, the chart's pods as {pod['runAsUser']}:{pod['runAsGroup']}")
    for name, service in yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"].items():
        check = service.get("healthcheck", {}).get("test", ["CMD"])
        must(check[0] == "CMD", f"compose.yaml: the healthcheck of {name} needs a shell")
        must("build" not in service or check[1:2] in ([], ["capture-worker"]),
             f"compose.yaml: {check[1:2]} is not in the image of {name}")
    return f"{package['name']} {package['version']}, {', '.join(sorted(labels))}"


def classic(scrape, written):
    """Converts a scrape to Prometheus' older text format for promtool, which skips metrics without a sample."""
    lines, kinds, sampled = [], {}, set()
    text = Path(scrape).read_text().splitlines()
    must(text[-1] == "# EOF", f"{scrape} is incomplete: the last line is not # EOF")
    for line in text:
        if found := re.match(r"# TYPE (\w+) (\w+)$", line):
            kinds[found[1]] = found[2]
    for line in text:
        if found := re.match(r"# (HELP|TYPE|UNIT|EOF) ?(\w*) ?(.*)", line):
            word, family, rest = found.groups()
            name = family + {"counter": "_total", "info": "_info"}.get(kinds.get(family), "")
            if word in ("HELP", "TYPE"):
                lines.append(f"# {word} {name} {'gauge' if rest == 'info' else rest}")
        else:
            lines.append(line)
            sampled.add(re.sub(r"_(total|info|bucket|sum|count)$", "", re.match(r"\w+", line)[0]))
    must(sampled == set(kinds), f"metrics without a sample: {sorted(set(kinds) - sampled)}")
    Path(written).write_text("\n".join(lines) + "\n")
    return f"{len(kinds)} metrics"


def settings():
    flat, known = defaults()
    values = yaml.safe_load((CHART / "values.yaml").read_text())["config"]
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["config"]["properties"]
    compared = 0
    for section, keys in values.items():
        for key, value in keys.items():
            path = f"{section}.{key}"
            must(path in known, f"values.yaml: there is no setting {path}")
            if path in flat:
                same = flat[path] == value
                must(path in DIFFERENT or same,
                     f"values.yaml: {path} is {value!r}, config/default.toml has {flat[path]!r}")
                must(path not in DIFFERENT or not same, f"{path} no longer differs: remove it from DIFFERENT")
                compared += 1
    settable = {f"{s}.{k}" for s, of in schema.items() for k in of.get("properties", {})}
    wanted = {path for path in known if not path.startswith("classes.")} - SECRETS
    must(settable == wanted, f"keys in only one of values.schema.json and config/default.toml: {settable ^ wanted}")
    return f"{compared} defaults compared, {len(wanted)} keys in the schema, {', '.join(DIFFERENT)} differs on purpose"


def rendered_settings(path, drain_more_than_call=True):
    flat, known = defaults()
    given = {f"{s}.{k}": v for s, keys in tomllib.loads(Path(path).read_text()).items() for k, v in keys.items()}
    for key in given:
        must(key in known or key.startswith("classes."), f"{path}: there is no setting {key}")
        must(key not in SECRETS, f"{path}: {key} is a secret")
        must(key not in flat or type(given[key]) is type(flat[key]), f"{path}: {key} has another type than in config/default.toml")
    return given


def pods(rendered, settings_file):
    """Pods satisfy Pod Security `restricted`, have the right probes and grace period, and no token or service variables."""
    given = rendered_settings(settings_file)
    (stack,) = set(re.findall(r"RUST_MIN_STACK=(\d+)", (ROOT / "deploy/Dockerfile").read_text()))
    found = 0
    for document in documents(rendered):
        if document["kind"] not in ("Deployment", "Pod"):
            continue
        found += 1
        name = f"{document['kind']} {document['metadata']['name']}"
        is_worker = document["kind"] == "Deployment"
        spec = document["spec"]["template"]["spec"] if is_worker else document["spec"]
        must(spec["automountServiceAccountToken"] is False, f"{name} mounts a token")
        must(spec["enableServiceLinks"] is False, f"{name} has service variables")
        must(spec["securityContext"]["runAsNonRoot"] is True, f"{name} may run as root")
        must(spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", f"{name} has no seccomp profile")
        allowed = {"configMap", "projected", "emptyDir", "secret"}
        for volume in spec["volumes"]:
            must(set(volume) - {"name"} <= allowed, f"{name}: volume {volume['name']} is not `restricted`")
        (container,) = spec["containers"]
        context = container["securityContext"]
        must(context["allowPrivilegeEscalation"] is False, f"{name} may escalate privileges")
        must(context["readOnlyRootFilesystem"] is True, f"{name} has a writable root file system")
        must(context["capabilities"] == {"drop": ["ALL"]}, f"{name} keeps capabilities")
        must("cpu" not in container["resources"]["limits"], f"{name} has a CPU limit")
        must("memory" in container["resources"]["limits"], f"{name} has no memory limit")
        env = {variable["name"]: variable.get("value") for variable in container["env"]}
        must(env["RUST_MIN_STACK"] == stack, f"{name}: RUST_MIN_STACK differs from the Dockerfile's")
        must(len(env) == len(container["env"]), f"{name} sets a variable twice")
        if not is_worker:
            must(container["args"] == ["check"], f"{name} does not run `check`")
            continue
        must(container["args"] == ["run"], f"{name} does not run `run`")
        grace = spec["terminationGracePeriodSeconds"]
        must(grace > seconds(given["drain.timeout"]), f"{name}: the grace period of {grace} s is not more than drain.timeout")
        paths = [container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")]
        must(paths == ["/livez", "/livez", "/readyz"], f"{name}: the probes call {paths}")
        must(given["http.listen"].endswith(f":{container['ports'][0]['containerPort']}"), f"{name}: the container port is not that of http.listen")
        rolling = document["spec"]["strategy"]["rollingUpdate"]
        must(rolling == {"maxUnavailable": 0, "maxSurge": 1}, f"{name}: rollingUpdate is {rolling}")
        scaled = [d for d in documents(rendered) if d["kind"] in ("ScaledObject", "HorizontalPodAutoscaler")]
        must(bool(scaled) != ("replicas" in document["spec"]), f"{name}: it needs either replicas or an autoscaler")
        must(len(scaled) < 2, f"{name}: two autoscalers")
    must(found, f"{rendered}: no pod template")
    return f"{found} pod templates pass"


def delay(ms):
    for unit, of in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if ms % of == 0:
            return f"{ms // of}{unit}"
    return f"{ms}ms"


def topology(rendered, settings_file):
    """The operator's resources are exactly those of the program (src/broker/topology.rs)."""
    given = rendered_settings(settings_file)
    prefix = given["broker.prefix"]
    classes = re.findall(r'^\s+Self::\w+ => "(\w+)",$', (ROOT / "src/domain/capture/class.rs").read_text(), re.M)
    must(len(classes) == 16, f"src/domain/capture/class.rs has {len(classes)} classes")
    exchanges = {f"{prefix}.{n}": t for n, t in
                 (("jobs", "topic"), ("wait", "direct"), ("dead", "direct"), ("audit", "direct"), ("results", "topic"))}
    again = {"x-dead-letter-strategy": "at-least-once"}
    queues = {f"{prefix}.jobs": (f"{prefix}.jobs", "#", {
        "x-delivery-limit": 20, "x-dead-letter-exchange": f"{prefix}.dead", "x-dead-letter-routing-key": "poison"} | again)}
    for ms in {round(1000 * seconds(d)) for d in given["retry.schedule"] + given["retry.defer_schedule"]}:
        queues[f"{prefix}.wait.{delay(ms)}"] = (f"{prefix}.wait", delay(ms), {
            "x-message-ttl": ms, "x-dead-letter-exchange": f"{prefix}.jobs", "x-dead-letter-routing-key": "retry"} | again)
    for name in classes:
        queues[f"{prefix}.dead.{name}"] = (f"{prefix}.dead", name, {"x-delivery-limit": 2_000_000_000})
    queues[f"{prefix}.audit"] = (f"{prefix}.audit", "audit", {"x-delivery-limit": 2_000_000_000})
    specs = {kind: [d["spec"] for d in documents(rendered) if d["kind"] == kind] for kind in ("Exchange", "Queue", "Binding")}
    names = [(d["kind"], d["metadata"]["name"]) for d in documents(rendered)]
    must(len(names) == len(set(names)), "two objects have the same name")
    must(all(re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", name) and len(name) <= 253 for _, name in names),
         "a name is not valid in Kubernetes")
    must({e["name"]: e["type"] for e in specs["Exchange"]} == exchanges, "the exchanges differ from the program's")
    wanted = {name: arguments | {"x-overflow": "reject-publish"} for name, (_, _, arguments) in queues.items()}
    must({q["name"]: q["arguments"] for q in specs["Queue"]} == wanted, "the queues differ from the program's")
    must(all(q["type"] == "quorum" and q["deletionPolicy"] == "retain" for q in specs["Queue"]), "a queue is not a quorum queue, or is not retained")
    bindings = {(name, exchange, key) for name, (exchange, key, _) in queues.items()}
    must({(b["destination"], b["source"], b["routingKey"]) for b in specs["Binding"]} == bindings, "the bindings differ from the program's")
    must(all(x["durable"] for x in specs["Exchange"] + specs["Queue"]), "an exchange or queue is not durable")
    policies = [d["spec"] for d in documents(rendered) if d["kind"] == "Policy"]
    must(len(policies) == 4 and {p["priority"] for p in policies} == {1000}, "there are not four policies of priority 1000")
    must({p["applyTo"] for p in policies} == {"queues"} and {p["vhost"] for p in policies} == {q["vhost"] for q in specs["Queue"]},
         "a policy applies to other objects than queues, or in another vhost")
    strange = {f"{prefix}.ledger", f"x{prefix}.jobs", f"{prefix}.jobs.x", f"{prefix}.dead.risk.look", f"{prefix}.audit.look"}
    for name in set(queues) | strange:
        found = [p["definition"] for p in policies if re.search(p["pattern"], name)]
        limit = queues[name][2].get("x-delivery-limit") if name in queues else None
        keep = [] if name in strange else [{"delivery-limit": limit} if limit else {"overflow": "reject-publish"}]
        must(found == keep, f"{name} has the policies {found}")
    if prefix == "capture":
        # A test of the program compares this file with what it declares.
        file = json.loads((ROOT / "deploy/definitions.json").read_text())
        must({q["name"]: q["arguments"] for q in file["queues"]}
             == {name: arguments | {"x-queue-type": "quorum"} for name, arguments in wanted.items()}, "the queues differ from definitions.json")
        must({(b["destination"], b["source"], b["routing_key"]) for b in file["bindings"]} == bindings, "the bindings differ from definitions.json")
        must({p["name"]: (p["pattern"], p["apply-to"], p["priority"], json.dumps(p["definition"])) for p in file["policies"]}
             == {p["name"]: (p["pattern"], p["applyTo"], p["priority"], json.dumps(p["definition"])) for p in policies},
             "the policies differ from definitions.json")
    for permission in (d["spec"] for d in documents(rendered) if d["kind"] == "Permission"):
        must(set(permission) - {"user", "userReference"} == {"vhost", "permissions", "rabbitmqClusterReference"}, f"{permission}")
        must(("user" in permission) != ("userReference" in permission), "a Permission needs either user or userReference")
        may = permission["permissions"]
        must(set(may) == {"configure", "read", "write"} and may["configure"] == "", f"the worker may configure {may}")
        names = set(queues) | set(exchanges) | {"amq.default", f"{prefix}-jobs", f"x{prefix}.jobs", f"{prefix}.jobs.x"}
        must({n for n in names if re.search(may["read"], n)} == {f"{prefix}.jobs"}, f"the worker may read {may['read']}")
        must({n for n in names if re.search(may["write"], n)} == {f"{prefix}.{e}" for e in ("wait", "dead", "results")},
             f"the worker may write {may['write']}")
    return f"{len(exchanges)} exchanges, {len(queues)} queues, {len(bindings)} bindings, {len(policies)} policies"


def alerts(rules):
    """Metrics are in the table of docs/METRICS.md, labels are the program's; each alert has its section and its tests."""
    runbook = (ROOT / "docs/RUNBOOK.md").read_text()
    metrics = (ROOT / "docs/METRICS.md").read_text()
    table = metrics[metrics.index("| metric `capture_worker_…`"):]
    names = set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.split("\n\n")[0].splitlines()[2:])))
    program = "\n".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.rs")))
    sections = re.findall(r"^### (CaptureWorker\w+)$", runbook, re.M)
    tests = [t for test in yaml.safe_load((HERE / "alerts_test.yaml").read_text())["tests"] for t in test["alert_rule_test"]]
    found = documents(rules)[0]["groups"][0]["rules"]
    for rule in found:
        alert = rule["alert"]
        for metric in re.findall(r"capture_worker_(\w+)", rule["expr"]):
            metric = metric.removesuffix("_count") if metric.endswith("_seconds_count") else metric
            must(metric in names, f"{alert}: docs/METRICS.md has no metric {metric}")
        for label, values in re.findall(r'(\w+)(?:!~|=~|!=|=)"([^"]*)"', rule["expr"]):
            for value in values.split("|") if label not in ("namespace", "pod") else ():
                must(f'"{value}"' in program, f"{alert}: no {label} is {value}")
        must(rule["annotations"]["runbook_url"].endswith(f"docs/RUNBOOK.md#{alert.lower()}"),
             f"{alert}: runbook_url is not its section of docs/RUNBOOK.md")
        must(all(any(t["alertname"] == alert and bool(t["exp_alerts"]) == fires for t in tests) for fires in (True, False)),
             f"{alert} has no test in which it fires, or none in which it does not")
    must(sections == [rule["alert"] for rule in found], f"docs/RUNBOOK.md has other sections than there are alerts: {sections}")
    for alert, text in re.findall(r"^### (CaptureWorker\w+)$(.*?)(?=^### |\Z)", runbook, re.M | re.S):
        parts = re.findall(r"^\*\*(\w+)\.\*\*", text, re.M)
        must(parts == ["Meaning", "Impact", "Check", "Fix"], f"docs/RUNBOOK.md: {alert} has the parts {parts}")
    return f"{len(found)} alerts: metrics and labels exist, each has a section of the runbook, and tests that fire and that don't"


if __name__ == "__main__":
    try:
        print("   ", globals()[sys.argv[1]](*sys.argv[2:]))
    except Wrong as wrong:
        sys.exit(f"FAILED: {wrong}")
