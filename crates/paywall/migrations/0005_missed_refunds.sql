-- Refunds that the journal of refunds knows and these books did not, since the books had been brought back from an older copy: the
-- money has left, or may have. `amount_msat` is what isn't taken from the purchase yet: it is, as soon as there is something to take it
-- from (its account is opened, its second payment is told). Where there never will be, since it was spent, the row stays: the seller
-- has lost that money. It stands beside the law, since no unit was sold for it.
CREATE TABLE missed_refund (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    id          BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
    hash        BLOB NOT NULL CHECK (length(hash) = 32),
    source      TEXT NOT NULL CHECK (source IN ('credit', 'surplus')),
    amount_msat INTEGER NOT NULL CHECK (amount_msat > 0),
    asked_at    INTEGER NOT NULL,
    paid_at     INTEGER
) STRICT;
CREATE INDEX missed_refund_of ON missed_refund (hash);

-- Up to which row of the journal of refunds all that has left is on these books. It travels with them: older books name an earlier row.
CREATE TABLE refund_mark (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    seq INTEGER NOT NULL,
    id  BLOB NOT NULL CHECK (length(id) = 16)
) STRICT;
