// The official `openai` npm client, unchanged: node client.js URL. Prints what it saw as JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "any" });
const seen = {};

const answer = await client.images.generate({ prompt: "a cat", size: "128x128", n: 2, seed: 5 });
seen.seeds = answer.data.map((image) => image.seed);
seen.isPng = Buffer.from(answer.data[0].b64_json, "base64").subarray(1, 4).toString() === "PNG";
seen.totalTokens = answer.usage.total_tokens;

seen.events = [];
const stream = await client.images.generate({ prompt: "a cat", stream: true, partial_images: 2 });
for await (const event of stream) seen.events.push(event.type);

try {
  for await (const event of await client.images.generate({ prompt: "fail: a cat", stream: true })) void event;
} catch (error) {
  seen.streamError = error.message;
}
try {
  await client.images.generate({ prompt: "a cat", size: "1x1" });
} catch (error) {
  seen.error = { name: error.constructor.name, status: error.status, code: error.code, param: error.param };
}

seen.models = [];
for await (const model of client.models.list()) seen.models.push(model.id);
console.log(JSON.stringify(seen));
