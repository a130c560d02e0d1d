{{/*
What every pod has in common: PodSecurity "restricted", a read-only root, no service-account token, no service links
(Kubernetes' own KORRIGO_…_SERVICE_HOST would be refused as an unknown setting), and the pass-throughs of values.

`options` is the component's values; what its `pod` names overrides `pods`, maps key by key.
*/}}

{{- define "korrigo.podOptions" -}}
{{- mergeOverwrite (deepCopy .root.Values.pods) (deepCopy .options.pod) | toJson -}}
{{- end -}}

{{- define "korrigo.podAnnotations" -}}
{{- with (include "korrigo.podOptions" . | fromJson).annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "korrigo.podLabels" -}}
{{ include "korrigo.labels" (merge (dict "more" ((include "korrigo.podOptions" . | fromJson).labels | default dict)) .) }}
{{- end -}}

{{/*
First lines of a pod's spec; `serviceAccount` and `token` only for who calls the API server, `near` lists terms of pod
affinity that the pod requires.
*/}}
{{- define "korrigo.podSpec" -}}
{{- $pod := include "korrigo.podOptions" . | fromJson -}}
enableServiceLinks: false
automountServiceAccountToken: {{ .token | default false }}
serviceAccountName: {{ .serviceAccount | default (include "korrigo.fullname" .) }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with $pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $affinity := $pod.affinity | default dict }}
{{- with .near }}
{{- /* What the pod itself needs stands beside what values ask for. */}}
{{- $key := "requiredDuringSchedulingIgnoredDuringExecution" }}
{{- $pods := $affinity.podAffinity | default dict }}
{{- $affinity = set $affinity "podAffinity" (set $pods $key (concat (get $pods $key | default list) .)) }}
{{- end }}
{{- with $affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if and .spread $pod.topologySpread }}
topologySpreadConstraints:
  {{- range $pod.topologySpread }}
  - maxSkew: {{ .maxSkew }}
    topologyKey: {{ .topologyKey }}
    whenUnsatisfiable: {{ .whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "korrigo.selector" $ | nindent 8 }}
    # Of a rolling update only the new pods count, else they are placed by where the old ones were.
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end -}}

{{- define "korrigo.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* Volumes of every process: a /tmp of its own, and the secrets that `needs` names. */}}
{{- define "korrigo.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ .tmpSize | default "1Gi" }}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      {{- include "korrigo.secretSources" . | nindent 6 }}
{{- end -}}

{{- define "korrigo.volumeMounts" -}}
- name: tmp
  mountPath: /tmp
- name: secrets
  mountPath: {{ include "korrigo.secretsFolder" . }}
  readOnly: true
{{- end -}}

{{/* extraEnv of everywhere and of this component; the latter wins, because the last of two equal names counts. */}}
{{- define "korrigo.extraEnv" -}}
{{- with concat .root.Values.pods.extraEnv (.options.pod.extraEnv | default list) }}
{{ toYaml . }}
{{- end }}
{{- end -}}
