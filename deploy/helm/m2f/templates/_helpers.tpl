{{- define "m2f.name" -}}
{{- ternary .Release.Name (printf "%s-m2f" .Release.Name) (contains "m2f" .Release.Name) | replace "." "-" | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "m2f.selector" -}}
app.kubernetes.io/name: m2f
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "m2f.predictSelector" -}}
app.kubernetes.io/name: m2f-predict
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "m2f.labels" -}}
{{ include "m2f.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "m2f.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "m2f.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- /* what the security level "restricted" asks of a pod and of each container */ -}}
{{- define "m2f.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000 # reads the TLS key
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "m2f.locked" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "m2f.mebibytes" -}}
{{- $number := regexFind "^[0-9]+" . | int64 }}
{{- ternary (mul $number 1024) $number (hasSuffix "Gi" .) }}
{{- end }}

{{- /* what values.schema.json cannot compare */ -}}
{{- define "m2f.check" -}}
{{- $taken := dict }}
{{- range $name, $port := .Values.ports }}
{{- $port = int $port | toString }}
{{- with get $taken $port }}
{{- fail (printf "ports.%s and ports.%s are both %s; give each a port of its own" . $name $port) }}
{{- end }}
{{- $_ := set $taken $port $name }}
{{- end }}
{{- $shared := include "m2f.mebibytes" .Values.sharedMemory | int64 }}
{{- if ge $shared (include "m2f.mebibytes" .Values.resources.limits.memory | int64) }}
{{- fail (printf "sharedMemory %s counts as memory: it must be less than resources.limits.memory, which is %s" .Values.sharedMemory .Values.resources.limits.memory) }}
{{- end }}
{{- if gt (include "m2f.mebibytes" .Values.resources.requests.memory | int64) (include "m2f.mebibytes" .Values.resources.limits.memory | int64) }}
{{- fail (printf "resources.requests.memory %s must be at most resources.limits.memory, which is %s" .Values.resources.requests.memory .Values.resources.limits.memory) }}
{{- end }}
{{- with .Values.rollingUpdate }}
{{- if and (has (toString .maxSurge) (list "0" "0%")) (has (toString .maxUnavailable) (list "0" "0%")) }}
{{- fail "rollingUpdate.maxSurge and rollingUpdate.maxUnavailable are both 0: no pod could be replaced" }}
{{- end }}
{{- end }}
{{- with .Values.autoscaling }}
{{- if gt (int .minReplicas) (int .maxReplicas) }}
{{- fail (printf "autoscaling.minReplicas %v must be at most autoscaling.maxReplicas, which is %v" .minReplicas .maxReplicas) }}
{{- end }}
{{- end }}
{{- with .Values.predict }}
{{- if gt (int .parallelism) (int .shards) }}
{{- fail (printf "predict.parallelism %v must be at most predict.shards, which is %v" .parallelism .shards) }}
{{- end }}
{{- if and .enabled $.Values.front.enabled (not .url) }}
{{- fail "predict.url must name the server, such as grpcs://m2f.example: the front's certificate is for that name" }}
{{- end }}
{{- end }}
{{- end }}
