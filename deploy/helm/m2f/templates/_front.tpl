{{- define "m2f.frontFiles" -}}
{{- $files := list "nginx.conf" "errors.conf" "triton_http.conf" "triton_grpc.conf" "grpc_errors.conf" "inference.js" "njs.conf" }}
{{- $files = ternary (append $files "mtls.conf") $files .Values.front.clientCA }}
{{- $files | toJson }}
{{- end }}

{{- /* deploy/nginx/nginx.conf with the addresses and models of the values */ -}}
{{- define "m2f.nginxConf" -}}
{{- $listen := ternary "listen [::]:%d ssl ipv6only=off;" "listen %d ssl;" (eq .Values.listen "::") }}
{{- .Files.Get "files/nginx/nginx.conf"
  | replace "server 127.0.0.1:8000;" (printf "server 127.0.0.1:%d;" (int .Values.ports.http))
  | replace "server 127.0.0.1:8001;" (printf "server 127.0.0.1:%d;" (int .Values.ports.grpc))
  | replace "listen 8443 ssl;" (printf $listen (int .Values.ports.front))
  | replace "default \"mask2former\";" (printf "default \"%s\";" (join " " .Values.front.models)) }}
{{- end }}

{{- define "m2f.frontContainer" -}}
- name: front # a sidecar: it starts first and stops last, so m2f drains while the front still runs
  restartPolicy: Always
  image: {{ .Values.front.image }}
  ports:
    - name: front
      containerPort: {{ .Values.ports.front }}
  startupProbe:
    tcpSocket:
      port: front
    periodSeconds: 1
    failureThreshold: 30
  resources:
    requests:
      cpu: 100m
      memory: 128Mi
    limits:
      memory: {{ .Values.front.memory }}
  securityContext:
    {{- include "m2f.locked" . | nindent 4 }}
  volumeMounts:
    {{- range include "m2f.frontFiles" . | fromJsonArray }}
    - name: front
      mountPath: /etc/nginx/{{ get (dict "njs.conf" "modules.d/" "mtls.conf" "m2f.d/") . }}{{ . }}
      subPath: {{ . }}
    {{- end }}
    - name: tls
      mountPath: /etc/nginx/tls
      readOnly: true
    - name: front-tmp
      mountPath: /tmp
{{- end }}
