// The official `openai` npm client: node use_openai.js BASE_URL. Prints what it saw as JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "any" });
const seen = {};

const answer = await client.images.generate({ prompt: "a cat", size: "128x128", n: 2, seed: 5 });
seen.seeds = answer.data.map((image) => image.seed);
seen.isPng = Buffer.from(answer.data[0].b64_json, "base64").subarray(1, 4).toString() === "PNG";
seen.totalTokens = answer.usage.total_tokens;

seen.events = [];
const stream = await client.images.generate({ prompt: "a cat", stream: true, partial_images: 2 });
for await (const event of stream) seen.events.push(event.type);

async function error(promise) {
  try {
    const result = await promise;
    for await (const event of result) void event;
  } catch (error) {
    const { constructor, status, code, param } = error;
    return { name: constructor.name, status, code, param, hasRequestId: Boolean(error.requestID) };
  }
}

const create = (body, options) => error(client.images.generate({ prompt: "a cat", ...body }, options));
seen.errors = {
  size: await create({ size: "1x1" }),
  model: await create({ model: "other" }),
  failure: await create({ prompt: "fail: a cat" }),
  deadline: await create({ prompt: "deadline: a cat" }),
  stream: await create({ prompt: "fail: a cat", stream: true }),
  unreachable: await create({}, { timeout: 1000, maxRetries: 0 }),
  timeout: await create({ prompt: "hold: a cat" }, { timeout: 900, maxRetries: 0 }),
  edit: await error(client.images.edit({ prompt: "a cat", image: new File(["x"], "x.png") })),
};

const bytes = Buffer.from(process.argv[3], "base64");
const file = (name) => new File([bytes], name, { type: "image/png" });
const edit = (body) => client.images.edit({ prompt: "a cat", seed: 5, strength: 1, ...body });
const seeds = (made) => made.data.map((image) => image.seed);
seen.edits = {
  file: seeds(await edit({ image: file("a.png") })),
  list: seeds(await edit({ image: [file("a.png"), file("b.png")], n: 2 })),
  mask: seeds(await edit({ image: file("a.png"), mask: file("mask.png"), expand: { left: 32 } })),
  events: [],
};
const edited = await edit({ image: file("a.png"), stream: true, partial_images: 1 });
for await (const event of edited) seen.edits.events.push(event.type);

// The timeout ends with the response headers, so it does not limit a stream.
const long = await client.images.generate({ prompt: "slow: a cat", n: 2, stream: true }, { timeout: 1000 });
seen.longStream = 0;
for await (const event of long) seen.longStream += event.type === "image_generation.completed";

const raw = await client.images
  .generate({ prompt: "a cat", seed: 8 }, { headers: { Accept: "image/png" }, __binaryResponse: true })
  .asResponse();
seen.raw = { seed: raw.headers.get("x-seed"), type: raw.headers.get("content-type") };
const { data, request_id } = await client.images.generate({ prompt: "a cat" }).withResponse();
seen.withResponse = { images: data.data.length, hasRequestId: Boolean(request_id) };

seen.models = [];
for await (const model of client.models.list()) seen.models.push(model.id);
console.log(JSON.stringify(seen));
