{{- define "millrace.removal" -}}
image: {{ include "millrace.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: [/millrace]
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    # Links, routes and rules; the namespaces of pods.
    add: [NET_ADMIN, SYS_ADMIN]
volumeMounts:
- name: plugins
  mountPath: /host/plugins
- name: configurations
  mountPath: /host/configurations
- name: run
  mountPath: /run/millrace
- name: state
  mountPath: /var/lib/millrace
- name: namespaces
  mountPath: /run/netns
  mountPropagation: HostToContainer
- name: namespaces
  mountPath: /var/run/netns
  mountPropagation: HostToContainer
- name: settings
  mountPath: /host/proc/sys/net
{{- end }}
