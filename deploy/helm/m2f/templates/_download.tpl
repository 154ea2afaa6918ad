{{- define "m2f.download" -}}
{{- $scheme := regexFind "^[a-z0-9]+" .Values.repository.download.url }}
{{- $store := get (dict "s3" "s3" "gs" "gcs" "az" "azureblob") $scheme }}
- name: download
  image: {{ .Values.repository.download.image }}
  args:
    - copy
    - --checksum
    - --config=
    - :{{ $store }},env_auth=true:{{ trimPrefix (print $scheme "://") .Values.repository.download.url }}
    - /models/repository
  {{- with .Values.repository.download.secret }}
  envFrom:
    - secretRef:
        name: {{ . | quote }}
  {{- end }}
  resources:
    requests:
      cpu: 100m
      memory: 128Mi
    limits:
      memory: 1Gi
  securityContext:
    {{- include "m2f.locked" . | nindent 4 }}
  volumeMounts:
    - name: models
      mountPath: /models
    - name: tmp
      mountPath: /tmp
{{- end }}
