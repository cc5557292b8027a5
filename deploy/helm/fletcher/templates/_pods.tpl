{{/* What all pods have in common. Of a pod: nobody's privileges, and no token of the cluster. */}}
{{- define "fletcher.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Of a container: a file system that it cannot write, beside /tmp. */}}
{{- define "fletcher.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Where a pod may run: the values of one part. */}}
{{- define "fletcher.placement" -}}
{{- with (.gpu | default dict).runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The resources of one part, with its GPUs among the limits. */}}
{{- define "fletcher.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- with .gpu -}}
{{- if .count -}}
{{- $limits := merge (dict .resource (toString .count)) ($resources.limits | default dict) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- end -}}
{{ toYaml $resources }}
{{- end -}}

{{/* A home in /tmp, for caches that some library may want to keep, and no hub: a model that is not there is an error. */}}
{{- define "fletcher.environment" -}}
- name: HOME
  value: /tmp
- name: HF_HUB_OFFLINE
  value: "1"
{{- end -}}

{{/* Environment, mounts and volumes of whatever works on the vector store. */}}
{{- define "fletcher.storeEnvironment" -}}
- name: FLETCHER_STORE
  value: {{ include "fletcher.store" . | quote }}
{{- end -}}

{{- define "fletcher.workMounts" -}}
- name: tmp
  mountPath: /tmp
{{- if not .Values.store.url }}
- name: store
  mountPath: /store
{{- end }}
{{- if .Values.model.volume }}
- name: models
  mountPath: /models
  readOnly: true
{{- end }}
{{- end -}}

{{- define "fletcher.workVolumes" -}}
- name: tmp
  emptyDir: {}
{{- if not .Values.store.url }}
- name: store
  persistentVolumeClaim:
    claimName: {{ include "fletcher.claim" . }}
{{- end }}
{{- with .Values.model.volume }}
- name: models
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What Ray's processes and whoever calls them share. */}}
{{- define "fletcher.rayToken" -}}
- name: RAY_AUTH_MODE
  value: token
- name: RAY_AUTH_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .Values.ray.tokenSecret.name }}
      key: {{ .Values.ray.tokenSecret.key }}
{{- end -}}
