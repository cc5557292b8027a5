{{/* Names and labels. Ray's operator adds up to 14 characters to a name, and a Service's may have 63. */}}
{{- define "fletcher.name" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* What a Service or a policy finds the pods of one part by: (list $ "serve"). */}}
{{- define "fletcher.selector" -}}
app.kubernetes.io/name: fletcher
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "fletcher.labels" -}}
{{- $root := index . 0 -}}
{{ include "fletcher.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version }}
{{- end -}}

{{- define "fletcher.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}

{{- define "fletcher.codeImage" -}}
{{ default (include "fletcher.image" .) .Values.dagster.image }}
{{- end -}}

{{- define "fletcher.claim" -}}
{{ default (printf "%s-store" (include "fletcher.name" .)) .Values.store.existingClaim }}
{{- end -}}

{{/* Where the vector store is, as the code location and Ray's workers are told. */}}
{{- define "fletcher.store" -}}
{{ default "/store" .Values.store.url }}
{{- end -}}

{{- define "fletcher.rayAddress" -}}
{{ default (printf "ray://%s-ray-head-svc:10001" (include "fletcher.name" .)) .Values.ray.address }}
{{- end -}}
