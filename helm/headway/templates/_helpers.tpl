{{/* Name of the application in the standard labels. */}}
{{- define "headway.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Name of the objects: the release's name, with the chart's behind it unless it is already in there. */}}
{{- define "headway.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels that pick the pods of this release; they never change over its life. */}}
{{- define "headway.selectorLabels" -}}
app.kubernetes.io/name: {{ include "headway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "headway.labels" -}}
{{ include "headway.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "headway.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "headway.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Image reference: digest before tag before appVersion, which gets "-cuda" for a GPU. */}}
{{- define "headway.image" -}}
{{- $image := .Values.image -}}
{{- $name := ternary (printf "%s/%s" $image.registry $image.repository) $image.repository (ne $image.registry "") -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest }}
{{- else -}}
{{- $default := ternary (printf "%s-cuda" .Chart.AppVersion) .Chart.AppVersion .Values.gpu.enabled -}}
{{- printf "%s:%s" $name (default $default $image.tag) }}
{{- end }}
{{- end }}

{{/* The settings that the ConfigMap holds. Integers go through int64: Helm would write 67108864 as 6.7108864e+07. */}}
{{- define "headway.settings" -}}
{{- $config := .Values.config -}}
HEADWAY_HOST: "0.0.0.0"
HEADWAY_PORT: "8000"
HEADWAY_METRICS_PORT: "9090"
{{- if eq .Values.store.kind "sqlite" }}
HEADWAY_STORE: "sqlite+aiosqlite:////data/headway.db"
{{- end }}
{{- if .Values.keys.existingSecret }}
HEADWAY_KEYS: {{ printf "/etc/headway/keys/%s" .Values.keys.secretKey | quote }}
{{- end }}
{{- if .Values.models.existingClaim }}
HEADWAY_MODELS: "/models"
{{- end }}
HEADWAY_DEVICE: {{ ternary (ternary "tensorrt" "cuda" .Values.gpu.tensorrt) "cpu" .Values.gpu.enabled }}
HEADWAY_FRONTENDS: {{ default (ternary 1 2 .Values.gpu.enabled) $config.frontends | int64 | toString | quote }}
HEADWAY_DRAIN_SECONDS: {{ int64 $config.drainSeconds | toString | quote }}
HEADWAY_LOG_LEVEL: {{ $config.logLevel | quote }}
{{- range $key, $name := dict "threads" "HEADWAY_THREADS" "queueRows" "HEADWAY_QUEUE_ROWS" "maxBatch" "HEADWAY_MAX_BATCH" "maxBodyBytes" "HEADWAY_MAX_BODY_BYTES" "residentHeads" "HEADWAY_RESIDENT_HEADS" "headBankBytes" "HEADWAY_HEAD_BANK_BYTES" "maxDelayUs" "HEADWAY_MAX_DELAY_US" }}
{{- $value := index $config $key }}
{{- if not (kindIs "invalid" $value) }}
{{ $name }}: {{ int64 $value | toString | quote }}
{{- end }}
{{- end }}
{{- with $config.dispatch }}
HEADWAY_DISPATCH: {{ . | quote }}
{{- end }}
{{- range $name, $value := $config.extra }}
{{ $name }}: {{ $value | quote }}
{{- end }}
{{- end }}

{{/* Where a container has its settings from. */}}
{{- define "headway.environment" -}}
envFrom:
  - configMapRef:
      name: {{ include "headway.fullname" . }}
{{- if or (ne .Values.store.kind "sqlite") .Values.extraEnv }}
env:
  {{- if ne .Values.store.kind "sqlite" }}
  - name: HEADWAY_STORE
    valueFrom:
      secretKeyRef:
        name: {{ .Values.store.postgresql.existingSecret }}
        key: {{ .Values.store.postgresql.secretKey }}
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Seconds that a pod needs to leave in order: the preStop sleep and the drain. */}}
{{- define "headway.leaveSeconds" -}}
{{- add (int64 .Values.preStopSeconds) (int64 .Values.config.drainSeconds) }}
{{- end }}

{{- define "headway.gracePeriodSeconds" -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{- add (include "headway.leaveSeconds" . | int64) 10 }}
{{- else -}}
{{- int64 .Values.terminationGracePeriodSeconds }}
{{- end }}
{{- end }}

{{- define "headway.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if .Values.gpu.enabled -}}
{{- $resources = mergeOverwrite $resources (dict "limits" (dict .Values.gpu.resourceName (int64 .Values.gpu.count))) -}}
{{- end -}}
{{- toYaml $resources }}
{{- end }}

{{- define "headway.podSecurityContext" -}}
runAsNonRoot: true
{{- if not (kindIs "invalid" .Values.security.userId) }}
{{- $id := int64 .Values.security.userId }}
runAsUser: {{ $id }}
runAsGroup: {{ $id }}
fsGroup: {{ $id }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "headway.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: ["ALL"]
{{- end }}

{{/* Timing of one probe, from its block of values. */}}
{{- define "headway.probeTiming" -}}
periodSeconds: {{ int64 .periodSeconds }}
timeoutSeconds: {{ int64 .timeoutSeconds }}
failureThreshold: {{ int64 .failureThreshold }}
{{- end }}
