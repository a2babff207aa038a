-- The lives of ledgers. One that has no end still runs, or was cut off: then its last group of debits may be missing, in the
-- buyer's favour. `groups` is the number of the last group written, so that one told twice counts once.
CREATE TABLE epoch (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    began_at   INTEGER NOT NULL,
    ended_at   INTEGER,
    groups     INTEGER NOT NULL DEFAULT 0 CHECK (groups >= 0),
    written_at INTEGER
) STRICT;

-- What became of the units of a counted purchase. It shares the number of the purchase's row. Reservations aren't here: they
-- end with the process. The law is the last CHECK; what is left is the difference.
CREATE TABLE account (
    purchase    INTEGER PRIMARY KEY REFERENCES purchase (seq),
    unit        TEXT NOT NULL CHECK (unit IN ('request', 'msat')),
    sold        INTEGER NOT NULL CHECK (sold > 0),
    spent       INTEGER NOT NULL DEFAULT 0 CHECK (spent >= 0),
    refunding   INTEGER NOT NULL DEFAULT 0 CHECK (refunding >= 0),
    refunded    INTEGER NOT NULL DEFAULT 0 CHECK (refunded >= 0),
    written_off INTEGER NOT NULL DEFAULT 0 CHECK (written_off >= 0),
    requests    INTEGER NOT NULL DEFAULT 0 CHECK (requests >= 0),
    opened_at   INTEGER NOT NULL,
    debited_at  INTEGER,
    CHECK (spent + refunding + refunded <= sold)
) STRICT;

-- The same debits by service and day, for statistics and as a second count to hold the first against.
CREATE TABLE use_by_day (
    day         INTEGER NOT NULL,
    service     TEXT NOT NULL,
    unit        TEXT NOT NULL,
    requests    INTEGER NOT NULL DEFAULT 0,
    units       INTEGER NOT NULL DEFAULT 0,
    written_off INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (day, service, unit)
) STRICT, WITHOUT ROWID;

-- Money on its way back. A refund is begun before anything is paid, and ends once.
CREATE TABLE refund (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    id          BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
    purchase    INTEGER NOT NULL REFERENCES purchase (seq),
    source      TEXT NOT NULL CHECK (source IN ('credit', 'surplus')),
    amount_msat INTEGER NOT NULL CHECK (amount_msat > 0),
    asked_at    INTEGER NOT NULL,
    state       TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'paid', 'failed')),
    ended_at    INTEGER,
    CHECK ((state = 'open') = (ended_at IS NULL))
) STRICT;
CREATE INDEX refund_of_purchase ON refund (purchase);
CREATE INDEX refund_open ON refund (seq) WHERE state = 'open';

-- Answers to charged requests, for buyers who repeat a request under the same key. No status means: too large to keep.
CREATE TABLE kept_answer (
    key      BLOB NOT NULL PRIMARY KEY CHECK (length(key) = 32),
    request  BLOB NOT NULL CHECK (length(request) = 32),
    status   INTEGER,
    headers  BLOB,
    body     BLOB,
    until    INTEGER NOT NULL
) STRICT;
CREATE INDEX kept_answer_until ON kept_answer (until);
