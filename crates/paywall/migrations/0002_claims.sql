-- What the paid invoice says was sold, where it has a label of ours: known as soon as the money is there. It stays beside the
-- terms of the token, which say it with a signature once the token is presented.
ALTER TABLE purchase ADD COLUMN claimed_service TEXT;
ALTER TABLE purchase ADD COLUMN claimed_offer TEXT
    CHECK ((claimed_offer IS NULL) = (claimed_service IS NULL));
ALTER TABLE purchase ADD COLUMN claimed_msat INTEGER
    CHECK (claimed_msat > 0)
    CHECK ((claimed_msat IS NULL) = (claimed_service IS NULL))
    CHECK (claimed_msat IS NULL OR payments > 0);
