"""Bounds on what the engine holds in the memory of a device. Torch-free."""

PROMPT_CACHE_BYTES = 256 << 20  # of projected prompts
MODULATIONS = 8  # cached modulations, of one schedule and transformer each
PACKINGS = 16  # cached rotary tables, of one combination of lengths and transformer each

GRAPH_SHAPES = 32  # CUDA graphs per transformer; the least recently used is dropped first
GRAPH_TOKENS = 1024  # passes with more tokens are not recorded

# More latents are decoded in strips: an image above 1024 x 1024 at the published scale of 8.
MAX_WHOLE_AREA = 128 * 128
# Elements per strip, at least one row: 64 rows of the widest activation at 2048 pixels.
STRIP_ELEMENTS = 1 << 25

# Weights of a transformer block from which on bfloat16 and all threads are taken unmeasured: bfloat16 reads
# half as much memory, and the matrix products keep every thread busy.
LARGE_BLOCK = 1 << 24

# Layers of an offloaded text encoder on the device: one that runs, and the next ones, which are copied. On a
# PCIe bus, five take less time than most steps; more would take more memory.
LAYERS_IN_FLIGHT = 6
