// The AI SDK with its two providers for this API: node use_ai_sdk.js BASE_URL. Prints what it saw as JSON.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateImage } from "ai";

globalThis.AI_SDK_LOG_WARNINGS = false;
const options = { baseURL: process.argv[2], apiKey: "any" };
const openai = createOpenAI(options);
const compatible = createOpenAICompatible({ name: "ideoserve", ...options });

async function seen(model, more = {}) {
  const result = await generateImage({ model, prompt: "a cat", ...more });
  return {
    types: result.images.map((image) => image.mediaType),
    distinct: new Set(result.images.map((image) => image.base64)).size,
    requests: result.responses.length,
    tokens: result.usage.totalTokens,
    metadata: result.providerMetadata.openai?.images.map(({ size, quality }) => ({ size, quality })),
    warnings: result.warnings.map((warning) => warning.feature),
  };
}

async function error(model, more) {
  try {
    await generateImage({ model, prompt: "a cat", ...more });
  } catch (error) {
    const { name, statusCode, isRetryable, data, reason } = error;
    return { name, statusCode, isRetryable, code: data?.error.code, reason };
  }
}

const size = "128x64";
const openaiOptions = { openai: { quality: "high", outputFormat: "jpeg", style: "vivid", user: "u" } };
console.log(
  JSON.stringify({
    default: await seen(openai.image("fake-model")),
    options: await seen(openai.image("fake-model"), { n: 2, size, seed: 5, providerOptions: openaiOptions }),
    alias: await seen(openai.image("gpt-image-1"), { n: 2 }),
    compatible: await seen(compatible.imageModel("fake-model"), {
      n: 2,
      size,
      providerOptions: { ideoserve: { seed: 5, preset: "V4_TURBO_12" } },
    }),
    aspectRatio: await seen(compatible.imageModel("fake-model"), { aspectRatio: "16:9" }),
    size: await error(openai.image("fake-model"), { size: "1x1" }),
    model: await error(compatible.imageModel("other")),
    deadline: await error(openai.image("fake-model"), { prompt: "deadline: a cat", maxRetries: 0 }),
    retried: await error(openai.image("fake-model"), { prompt: "deadline: a cat", maxRetries: 1 }),
  }),
);
