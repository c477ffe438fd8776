// Validates a JSON array of custom resources on stdin against the CRD schemas. Prints one line per error, exits with 1.
import { readFileSync } from "node:fs";
import { HTTPRoute } from "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1/HTTPRoute";
import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject";
import { PrometheusRule } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PrometheusRule";
import { ServiceMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor";

const kinds = { HTTPRoute, ScaledObject, PrometheusRule, ServiceMonitor };
for (const resource of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    new kinds[resource.kind](resource).validate();
  } catch (error) {
    console.log(`${resource.kind}: ${error.message}`);
    process.exitCode = 1;
  }
}
