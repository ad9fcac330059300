// Validates custom resources against the models of their operators. chart.sh runs it from the
// folder that has them.
//
//     node custom.mjs FILE.json...    each file is a list of objects
//
// Each object is checked twice, because neither check is enough: the type checker refuses fields
// that the model does not have, and the model's own validation refuses values that its schema does
// not allow.

import { execFileSync } from "node:child_process";
import { readFileSync, rmSync, writeFileSync } from "node:fs";

const models = {
  "keda.sh/v1alpha1": "@kubernetes-models/keda/keda.sh/v1alpha1",
  "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
};
const objects = process.argv.slice(2).flatMap((file) => JSON.parse(readFileSync(file, "utf8")));
const wrong = [];

const typed = new URL("typed.mts", import.meta.url);
const names = new Map();
const literals = objects.map((object) => {
  const model = `${models[object.apiVersion]}/${object.kind}`;
  if (!names.has(model)) names.set(model, `I${object.kind}`);
  return `(${JSON.stringify(object)}) satisfies ${names.get(model)};`;
});
const imports = [...names].map(([model, name]) => `import type { ${name} } from "${model}";`);
writeFileSync(typed, [...imports, ...literals].join("\n"));
try {
  const tsc = new URL("node_modules/typescript/bin/tsc", import.meta.url).pathname;
  const options = ["--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", "--skipLibCheck", "--pretty", "false"];
  execFileSync(process.execPath, [tsc, ...options, typed.pathname], { stdio: "pipe" });
} catch (error) {
  wrong.push(error.stdout?.toString() || error.message);
} finally {
  rmSync(typed);
}

for (const object of objects) {
  const { [object.kind]: Model } = await import(`${models[object.apiVersion]}/${object.kind}`);
  try {
    new Model(object).validate();
  } catch (error) {
    wrong.push(`${object.kind} ${object.metadata.name}: ${error.message}`);
  }
}

if (wrong.length) {
  console.error(`FAILED: ${wrong.join("\n")}`);
  process.exit(1);
}
console.log(`    ${objects.length} custom resources: ${[...new Set(objects.map((object) => object.kind))].sort().join(", ")}`);
