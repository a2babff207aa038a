-- The mint secrets this store was used with, by fingerprint. `retired` is set once a start did not name them.
CREATE TABLE mint_secret (
    fingerprint TEXT NOT NULL PRIMARY KEY,
    first_used  INTEGER NOT NULL,
    retired     INTEGER
) STRICT;

-- How far each node's settlements are on the books.
CREATE TABLE node_cursor (
    node   TEXT NOT NULL PRIMARY KEY,
    cursor INTEGER NOT NULL
) STRICT;

-- Every payment that arrived. The key is what makes one that is told twice count once.
CREATE TABLE settlement (
    node        TEXT NOT NULL,
    cursor      INTEGER NOT NULL,
    hash        BLOB NOT NULL CHECK (length(hash) = 32),
    amount_msat INTEGER NOT NULL CHECK (amount_msat >= 0),
    at          INTEGER NOT NULL,
    PRIMARY KEY (node, cursor)
) STRICT, WITHOUT ROWID;

-- One row per payment hash, begun by a payment or by the first presentation of its token, completed by the other.
-- The law of the books is the last CHECK: a row that breaks it can't be written.
CREATE TABLE purchase (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    hash            BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
    token_id        BLOB CHECK (length(token_id) = 32),
    identifier_hash BLOB CHECK (length(identifier_hash) = 32),
    service         TEXT,
    tier            INTEGER,
    terms           TEXT,
    price_msat      INTEGER CHECK (price_msat > 0),
    valid_until     INTEGER,
    presented_at    INTEGER,
    paid_msat       INTEGER NOT NULL DEFAULT 0 CHECK (paid_msat >= 0),
    payments        INTEGER NOT NULL DEFAULT 0 CHECK (payments >= 0),
    settled_at      INTEGER,
    surplus_msat    INTEGER NOT NULL DEFAULT 0 CHECK (surplus_msat >= 0),
    shortfall_msat  INTEGER NOT NULL DEFAULT 0 CHECK (shortfall_msat >= 0),
    CHECK ((settled_at IS NULL) = (payments = 0)),
    CHECK ((price_msat IS NULL) = (terms IS NULL)),
    CHECK ((service IS NULL) = (terms IS NULL)),
    CHECK (payments > 0 OR paid_msat = 0),
    CHECK (payments > 0 OR terms IS NOT NULL),
    CHECK (surplus_msat = 0 OR shortfall_msat = 0),
    CHECK (CASE
        WHEN price_msat IS NULL OR payments = 0 THEN surplus_msat = 0 AND shortfall_msat = 0
        ELSE paid_msat + shortfall_msat = price_msat + surplus_msat
    END)
) STRICT;

-- Tokens that are dead whatever their signature says. `seq` is the cursor by which running gateways read on.
CREATE TABLE revocation (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    identifier_hash BLOB NOT NULL UNIQUE CHECK (length(identifier_hash) = 32),
    at              INTEGER NOT NULL,
    reason          TEXT NOT NULL
) STRICT;
