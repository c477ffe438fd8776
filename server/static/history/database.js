// Pictures in the browser's IndexedDB. Where it is not available, nothing is kept.

const NAME = "ideoserve", TABLE = "pictures";
let opened = null;

/** All records, the oldest first. */
export const all = () => request("readonly", (table) => table.getAll(), []);

/** Store a record, under its `id` if it has one. Returns the id. */
export const put = (record) => request("readwrite", (table) => table.put(record), undefined);

export const remove = (id) => request("readwrite", (table) => table.delete(id));

export const clear = () => request("readwrite", (table) => table.clear());

async function request(mode, action, otherwise) {
  try {
    opened ??= open();
    return await result(action((await opened).transaction(TABLE, mode).objectStore(TABLE)));
  } catch {
    return otherwise;
  }
}

function open() {
  const opening = indexedDB.open(NAME, 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(TABLE, { keyPath: "id", autoIncrement: true });
  return result(opening);
}

const result = (asked) => new Promise((resolve, reject) => {
  asked.onsuccess = () => resolve(asked.result);
  asked.onerror = () => reject(asked.error);
});
