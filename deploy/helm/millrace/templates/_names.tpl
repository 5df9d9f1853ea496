{{- define "millrace.labels" -}}
app.kubernetes.io/name: millrace
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}
{{- define "millrace.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
