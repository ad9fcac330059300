{{/*
The name of every object. At most 45 characters: a pod's name adds 17, and alerts match pods by the
whole name.
*/}}
{{- define "capture-worker.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- end }}

{{- define "capture-worker.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The component keeps the pod of `helm test` out of the Deployment, the Service and the budget. */}}
{{- define "capture-worker.workerLabels" -}}
{{ include "capture-worker.selectorLabels" . }}
app.kubernetes.io/component: worker
{{- end }}

{{- define "capture-worker.labels" -}}
{{ include "capture-worker.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "capture-worker.serviceAccountName" -}}
{{- $own := ternary (include "capture-worker.fullname" .) "default" .Values.serviceAccount.create -}}
{{- default $own .Values.serviceAccount.name -}}
{{- end }}

{{- define "capture-worker.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "capture-worker.port" -}}
{{ .Values.config.http.listen | splitList ":" | last }}
{{- end }}

{{/* Converts a duration such as "15m" to milliseconds. */}}
{{- define "capture-worker.ms" -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 "d" 86400000 -}}
{{- $ms := 0 -}}
{{- range regexFindAll "[0-9]+(ms|s|m|h|d)" . -1 -}}
{{- $unit := regexFind "[a-z]+" . -}}
{{- $ms = add $ms (mul (trimSuffix $unit . | int64) (get $units $unit)) -}}
{{- end -}}
{{ $ms }}
{{- end }}

{{/* Milliseconds as in the name of a wait queue: in the largest whole unit of ms, s, m, h. */}}
{{- define "capture-worker.delay" -}}
{{- $ms := int64 . -}}
{{- if not (mod $ms 3600000) -}}
{{ div $ms 3600000 }}h
{{- else if not (mod $ms 60000) -}}
{{ div $ms 60000 }}m
{{- else if not (mod $ms 1000) -}}
{{ div $ms 1000 }}s
{{- else -}}
{{ $ms }}ms
{{- end -}}
{{- end }}

{{- define "capture-worker.gracePeriod" -}}
{{- $seconds := div (add (include "capture-worker.ms" .Values.config.drain.timeout | int64) 999) 1000 -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{ add $seconds 10 }}
{{- else -}}
{{ int64 .Values.terminationGracePeriodSeconds }}
{{- end -}}
{{- end }}

{{/* The settings file, as TOML. */}}
{{- define "capture-worker.settings" -}}
{{- range $section, $keys := .Values.config }}
{{- if $keys }}
[{{ $section }}]
{{- range $key, $value := $keys }}
{{- if not (kindIs "invalid" $value) }}
{{ ternary (toJson $key) $key (eq $section "classes") }} = {{ include "capture-worker.toml" $value }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* A list, number or string as TOML. Strings are written as JSON: TOML reads the same escapes. */}}
{{- define "capture-worker.toml" -}}
{{- if kindIs "slice" . -}}
[{{ range $i, $item := . }}{{ if $i }}, {{ end }}{{ toJson $item }}{{ end }}]
{{- else if kindIs "string" . -}}
{{ toJson . }}
{{- else -}}
{{ int64 . }}
{{- end -}}
{{- end }}

{{/* The mounted secrets: for each setting its file, its key in the Secret, and the Secret. */}}
{{- define "capture-worker.secretFiles" -}}
{{- $secrets := .Values.secrets -}}
{{- $main := $secrets.existingSecret -}}
{{- $files := list
  (dict "env" "BROKER__URL_FILE" "path" "broker-url" "key" $secrets.keys.brokerUrl "secret" $main)
  (dict "env" "REDIS__URL_FILE" "path" "redis-url" "key" $secrets.keys.redisUrl "secret" $main)
  (dict "env" "REDIS__SENTINEL_PASSWORD_FILE" "path" "redis-sentinel-password" "key" $secrets.keys.redisSentinelPassword "secret" $main)
  (dict "env" "GATEWAY__PROXY_FILE" "path" "gateway-proxy" "key" $secrets.keys.gatewayProxy "secret" $main)
  (dict "env" "GATEWAY__PRIVATE_KEY_FILE" "path" "gateway-private-key" "key" $secrets.keys.gatewayPrivateKey "secret" $main)
  (dict "env" "GATEWAY__PUBLIC_KEY_FILE" "path" "gateway-public-key" "key" $secrets.keys.gatewayPublicKey "secret" $main)
-}}
{{- range $section, $tls := dict "broker" $secrets.brokerTls "redis" $secrets.redisTls -}}
{{- $secret := default $main $tls.existingSecret -}}
{{- $env := upper $section -}}
{{- $files = concat $files (list
  (dict "env" (printf "%s__CA_FILE" $env) "path" (printf "%s-ca.pem" $section) "key" $tls.ca "secret" $secret)
  (dict "env" (printf "%s__CLIENT_CERT_FILE" $env) "path" (printf "%s-client.pem" $section) "key" $tls.cert "secret" $secret)
  (dict "env" (printf "%s__CLIENT_KEY_FILE" $env) "path" (printf "%s-client.key" $section) "key" $tls.key "secret" $secret))
-}}
{{- end -}}
{{- $mounted := list -}}
{{- range $files -}}
{{- if .key -}}
{{- $mounted = append $mounted . -}}
{{- end -}}
{{- end -}}
{{ toJson $mounted }}
{{- end }}

{{/* The part of the pod that workers and the pod of `helm test` share. */}}
{{- define "capture-worker.podSpec" -}}
serviceAccountName: {{ include "capture-worker.serviceAccountName" . }}
# The worker never calls the Kubernetes API: a token could only be stolen.
automountServiceAccountToken: false
# Variables of Services could begin with CAPTURE_, and would be read as settings.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumes:
  - name: settings
    configMap:
      name: {{ include "capture-worker.fullname" . }}
  - name: secrets
    projected:
      # Readable for the owner and fsGroup only.
      defaultMode: 0440
      # Each key is listed, so that a missing one keeps the pod from starting, with an event that
      # names it.
      sources:
        {{- range include "capture-worker.secretFiles" . | fromJsonArray }}
        - secret:
            name: {{ .secret }}
            items:
              - key: {{ .key }}
                path: {{ .path }}
        {{- end }}
  # The only writable folder under the read-only root.
  - name: tmp
    emptyDir:
      sizeLimit: 16Mi
  {{- with .Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "capture-worker.container" -}}
image: {{ include "capture-worker.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
env:
  - name: CAPTURE_CONFIG
    value: /etc/capture-worker/settings.toml
  {{- range include "capture-worker.secretFiles" . | fromJsonArray }}
  - name: CAPTURE__{{ .env }}
    value: /run/secrets/capture-worker/{{ .path }}
  {{- end }}
  {{- with .Values.secrets.keys.gatewayAgentToken }}
  - name: CAPTURE__GATEWAY__AGENT_TOKEN
    valueFrom:
      secretKeyRef:
        name: {{ $.Values.secrets.existingSecret }}
        key: {{ . }}
  {{- end }}
  # The AMQP client reads header tables by recursion: a deeply nested table must not overflow the
  # stack and end the process. Only the used part of a stack takes memory.
  - name: RUST_MIN_STACK
    value: "67108864"
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
volumeMounts:
  - name: settings
    mountPath: /etc/capture-worker
    readOnly: true
  - name: secrets
    mountPath: /run/secrets/capture-worker
    readOnly: true
  - name: tmp
    mountPath: /tmp
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
