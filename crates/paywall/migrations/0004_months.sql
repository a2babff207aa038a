-- What tokens with limits by the month have used, month by month (UTC, counted from January 1970). By payment hash and not by
-- the purchase's number: a pass is on the books only some time after it was first shown. Rows of months that are over stay, for
-- who asks; nothing reads them to serve a request.
CREATE TABLE use_by_month (
    hash       BLOB NOT NULL CHECK (length(hash) = 32),
    month      INTEGER NOT NULL CHECK (month >= 0),
    capability TEXT NOT NULL,
    unit       TEXT NOT NULL CHECK (unit IN ('request', 'msat')),
    used       INTEGER NOT NULL CHECK (used >= 0),
    PRIMARY KEY (hash, month, capability, unit)
) STRICT, WITHOUT ROWID;

-- For who looks for one token, or for the payments of one purchase. Both are written when money or terms arrive, and by no
-- debit.
CREATE INDEX purchase_of_token ON purchase (identifier_hash) WHERE identifier_hash IS NOT NULL;
CREATE INDEX settlement_of_purchase ON settlement (hash);
