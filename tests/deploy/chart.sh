#!/usr/bin/env bash
# Validates the chart: lint, rendering, schemas, alerts, and values that must be refused.
#
#     bash tests/deploy/chart.sh
#     bash tests/deploy/chart.sh --policy    # also checkov's rules; takes a minute to fetch
#
# Optional environment variables:
#
#     CAPTURE_WORKER=target/release/capture-worker    # this program reads the rendered settings
#     CAPTURE_METRICS=target/tmp/metrics.txt          # this scrape is linted; the tests write it
#
# The tools are fetched into target/tools, at fixed versions (see tests/deploy/tools). No cluster is
# needed.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
chart=$(cd "$here/../../deploy/helm/capture-worker" && pwd)
program=${CAPTURE_WORKER:+$(realpath "$CAPTURE_WORKER")}
. "$here/../setup.sh"
. "$here/tools/fetch.sh"
need_tools

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONDONTWRITEBYTECODE=1 HELM_CACHE_HOME=$work/helm HELM_CONFIG_HOME=$work/helm HELM_DATA_HOME=$work/helm

# The oldest and the newest Kubernetes whose schemas the rendered objects are checked against.
oldest=1.27
newest=1.37

step() { printf '== %s\n' "$*"; }
step "helm $(helm version --template '{{.Version}}'), kubernetes-validate for $oldest and $newest"

step "yamllint"
yamllint --strict -d '{extends: default, rules: {line-length: {max: 160}, document-start: disable, braces: {max-spaces-inside: 0}}}' \
    "$chart/Chart.yaml" "$chart/values.yaml" "$chart/ci" "$here/alerts_test.yaml"

step "values.schema.json is a schema"
check-jsonschema --check-metaschema "$chart/values.schema.json"

step "values.config does not contradict config/default.toml"
python "$here/checks.py" settings

render() { # a name, then arguments of helm template
    local name=$1
    shift
    mkdir -p "$work/$name"
    helm template capture-worker "$chart" --namespace shop --kube-version "$newest" "$@" >"$work/$name/all.yaml" 2>"$work/$name/stderr"
    if [ -s "$work/$name/stderr" ]; then
        cat "$work/$name/stderr"
        exit 1
    fi
}

validate() { # the name of a rendering
    python "$here/checks.py" split "$work/$1/all.yaml" "$work/$1"
    for version in "$oldest" "$newest"; do
        kubernetes-validate --strict --quiet -k "$version" "$work/$1/core.yaml" >"$work/$1/said" 2>&1 || { cat "$work/$1/said"; exit 1; }
        if [ -s "$work/$1/said" ]; then
            cat "$work/$1/said"
            exit 1
        fi
    done
    python "$here/checks.py" pods "$work/$1/all.yaml" "$work/$1/settings.toml"
}

for values in default minimal everything; do
    step "$values: values against the schema, lint, rendered, core objects against the schemas of $oldest and $newest"
    helm lint "$chart" --strict --quiet --kube-version "$newest" --values "$chart/ci/$values-values.yaml"
    render "$values" --values "$chart/ci/$values-values.yaml"
    validate "$values"
done
step "default with hpa and serviceMonitor, which exclude keda and podMonitor"
render hpa --values "$chart/ci/default-values.yaml" --set hpa.enabled=true,serviceMonitor.enabled=true
validate hpa
step "default with keda"
render keda --values "$chart/ci/default-values.yaml" --set keda.enabled=true
validate keda

step "the operator's topology is the program's"
render topology --values "$chart/ci/default-values.yaml" --set rabbitmqTopology.enabled=true,rabbitmqTopology.clusterReference.name=rabbitmq
validate topology
render permission --values "$chart/ci/default-values.yaml" --set rabbitmqTopology.enabled=true,rabbitmqTopology.clusterReference.name=rabbitmq \
    --set rabbitmqTopology.permission.user=shipments,config.broker.topology=check
validate permission
for values in topology permission everything; do
    python "$here/checks.py" topology "$work/$values/all.yaml" "$work/$values/settings.toml"
done

if [ "${1:-}" = --policy ]; then
    step "checkov's rules, with everything enabled"
    policy_tool
    # Skipped rules: CPU limits would lengthen leases (CKV_K8S_11). helm sets the namespace, no
    # object names it (21). An image with a digest need not be pulled again (15). The pod of `helm
    # test` runs once, without probes (8, 9); `pods` above checks those of workers. Secrets are
    # files, but for the agent token, which has no setting for a file (35).
    "$tools/policy/bin/checkov" -f "$work/everything/core.yaml" --framework kubernetes --compact --quiet --skip-download \
        --skip-check CKV_K8S_11,CKV_K8S_21,CKV_K8S_15,CKV_K8S_8,CKV_K8S_9,CKV_K8S_35
fi

step "dashboard"
render dashboard --values "$chart/ci/default-values.yaml" --set grafanaDashboard.enabled=true
validate dashboard
for values in dashboard everything; do
    python "$here/checks.py" dashboard "$work/$values/all.yaml"
done

step "custom resources against the models of their operators"
cp "$here/custom.mjs" "$tools/node/"
custom() { node "$tools/node/custom.mjs" "$@"; }
custom "$work"/*/custom.json
# The check itself is checked: with a field that KEDA does not have, and with a value of another
# type.
wrong() { # a Python statement that makes `document` invalid
    python - "$work/everything/custom.json" "$work/wrong.json" "$1" <<'PYTHON'
import json, sys
document = next(d for d in json.load(open(sys.argv[1])) if d["kind"] == "ScaledObject")
exec(sys.argv[3])
json.dump([document], open(sys.argv[2], "w"))
PYTHON
    if custom "$work/wrong.json" 2>/dev/null; then
        printf 'FAILED: accepted, and must be refused: %s\n' "$1"
        exit 1
    fi
}
wrong 'document["spec"]["unheardOf"] = 1'
wrong 'document["spec"]["pollingInterval"] = "30"'

step "alerts"
render rules --values "$chart/ci/default-values.yaml" --set prometheusRule.enabled=true
validate rules
python "$here/checks.py" alerts "$work/rules/rules.yaml"
python "$here/checks.py" alerts "$work/everything/rules.yaml"
promtool check rules --lint=all --lint-fatal "$work/everything/rules.yaml"
cp "$here/alerts_test.yaml" "$work/rules/"
(cd "$work/rules" && promtool check rules --lint=all --lint-fatal rules.yaml && promtool test rules alerts_test.yaml)

if [ -n "${CAPTURE_METRICS:-}" ]; then
    step "metrics of a worker"
    python "$here/checks.py" classic "$CAPTURE_METRICS" "$work/metrics"
    promtool check metrics <"$work/metrics"
fi

step "values that must be refused"
refused() { # a part of the error message, then arguments of helm template
    local message=$1
    shift
    if helm template capture-worker "$chart" --kube-version "$newest" --values "$chart/ci/default-values.yaml" "$@" >"$work/out" 2>&1; then
        printf 'FAILED: accepted, and must be refused: %s\n' "$*"
        exit 1
    fi
    if ! grep -qF -- "$message" "$work/out"; then
        printf 'FAILED: refused for another reason: %s\n' "$*"
        cat "$work/out"
        exit 1
    fi
    printf '    refused: %s\n' "$*"
}
refused "exclude each other" --set keda.enabled=true,hpa.enabled=true
refused "exclude each other" --set podMonitor.enabled=true,serviceMonitor.enabled=true
refused "must be more than config.drain.timeout" --set terminationGracePeriodSeconds=20
refused "must be more than config.drain.timeout" --set terminationGracePeriodSeconds=60,config.drain.timeout=1m
refused "must be at least 1s more than config.gateway.timeout" --set config.drain.timeout=8s
refused "'unheard_of' not allowed" --set unheard_of=1
refused "'unheard_of' not allowed" --set config.broker.unheard_of=1
refused "'url' not allowed" --set config.broker.url=amqp://user:password@rabbitmq
refused "'private_key' not allowed" --set config.gateway.private_key=MII
refused "take it from a Secret" --set 'extraEnv[0].name=CAPTURE__REDIS__URL,extraEnv[0].value=redis://redis'
refused "CAPTURE__DRAIN__TIMEOUT can't be set here" --set 'extraEnv[0].name=CAPTURE__DRAIN__TIMEOUT,extraEnv[0].value=10m'
refused "existingSecret is required" --set secrets.existingSecret=
refused "base_url is required" --set config.gateway.base_url=
refused "/config/http/listen" --set config.http.listen=127.0.0.1:9090
refused "/keda/minReplicas" --set keda.minReplicas=0
refused "a user without permission to configure can't declare" --set rabbitmqTopology.enabled=true,rabbitmqTopology.clusterReference.name=rabbitmq,rabbitmqTopology.permission.user=shipments
refused "go together" --set secrets.brokerTls.cert=tls.crt
refused "prometheusRule.readmeUrl was renamed" --set prometheusRule.readmeUrl=README.md

if [ -n "$program" ]; then
    step "the program accepts the rendered settings (their servers do not exist)"
    openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$work/private.pem" 2>/dev/null
    openssl pkey -in "$work/private.pem" -pubout -out "$work/public.pem"
    printf 'amqp://nobody:nothing@127.0.0.1:1/%%2f' >"$work/broker-url"
    printf 'redis://127.0.0.1:1' >"$work/redis-url"
    for values in default minimal everything; do
        code=0
        env -i CAPTURE_CONFIG="$work/$values/settings.toml" \
            CAPTURE__BROKER__URL_FILE="$work/broker-url" CAPTURE__REDIS__URL_FILE="$work/redis-url" \
            CAPTURE__GATEWAY__PRIVATE_KEY_FILE="$work/private.pem" CAPTURE__GATEWAY__PUBLIC_KEY_FILE="$work/public.pem" \
            CAPTURE__GATEWAY__BASE_URL=http://127.0.0.1:1 CAPTURE__REDIS__SENTINEL_PASSWORD=nothing \
            timeout 60 "$program" check >"$work/out" 2>&1 || code=$?
        # 64 would mean refused settings. 1 means that the servers do not answer.
        if [ "$code" != 1 ]; then
            cat "$work/out"
            printf 'FAILED: %s: exit code %s, expected 1\n' "$values" "$code"
            exit 1
        fi
        printf '    %s: settings accepted\n' "$values"
    done
fi

step "all checks passed"
