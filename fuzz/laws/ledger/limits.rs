//! Limits by the month: what is drawn from them, and what has been.

use super::*;

impl World {
    /// One more request, of an account or with a pass, that is limited in one or two ways.
    pub(super) fn draw(&mut self, story: &mut Story<'_>) {
        let (token, units) = (story.below(TOKENS), NonZeroU64::new(story.units() + 1).expect("above zero"));
        let how = story.byte();
        let reservation = match how % 3 {
            0 => self.ledger.of_pass(hash(token), units).ok(),
            _ => match self.ledger.reserve_at_once(&hash(token), units) {
                Some(Ok(reservation)) => Some(reservation),
                _ => None,
            },
        };
        let Some(reservation) = reservation else { return };
        let month = self.ledger.month();
        assert!(month >= self.month, "a month has begun again");
        self.month = month;
        let draws: Vec<(Draw, Tally)> = (0..=how % 2)
            .map(|second| {
                let (write, money) = ((how & 4 > 0) ^ (second > 0), how & 8 > 0);
                let (unit, takes, taken) = match money {
                    true => (Unit::Msat, units.get(), Taken::AsCharged),
                    false => (Unit::Request, 1, Taken::All),
                };
                let (capability, most) = (name(write), u64::from(story.byte() % 24));
                (Draw { capability, unit, most, takes, taken }, (token, month, write, money))
            })
            .collect();
        let asked: Vec<Draw> = draws.iter().map(|(draw, _)| draw.clone()).collect();
        let outcome = match how & 16 > 0 {
            true => self.ledger.limit_at_once(reservation, &asked),
            false => Some(self.run(self.ledger.limit(reservation, &asked))),
        };
        let beside = |of: &Tally| (self.used(of), self.drawn(of));
        match outcome {
            None | Some(Err(Refused::Unavailable(_))) => {}
            Some(Ok(reservation)) => {
                for (draw, tally) in &draws {
                    let (used, reserved) = beside(tally);
                    assert!(used + reserved + draw.takes <= draw.most, "{used}, {reserved}: {draw:?}");
                }
                let drawn = draws.iter().map(|(draw, tally)| (*tally, draw.takes, draw.taken)).collect();
                self.tokens[token].opened |= reservation.is_of_account();
                self.held.push(Held { token, due: 0, reservation, drawn });
            }
            Some(Err(Refused::InFlight)) => {
                assert!(draws.iter().all(|(draw, tally)| beside(tally).0 + draw.takes <= draw.most));
                let is_short = |(draw, tally): &(Draw, Tally)| {
                    let (used, reserved) = beside(tally);
                    used + reserved + draw.takes > draw.most
                };
                assert!(draws.iter().any(is_short));
            }
            Some(Err(Refused::Limited(reached))) => {
                let is_it = |(draw, tally): &&(Draw, Tally)| {
                    draw.capability == reached.capability && beside(tally).0 == reached.used
                };
                let (draw, _) = draws.iter().find(is_it).expect("one of those that were asked for");
                assert!(reached.used + draw.takes > draw.most && reached.ends_at == month.ends_at());
                self.told[5] += 1;
            }
            Some(Err(other)) => panic!("{other}"),
        }
    }

    pub(super) fn used(&self, tally: &Tally) -> u64 {
        self.tallies.get(tally).map_or(0, |tally| tally.used)
    }

    pub(super) fn drawn(&self, tally: &Tally) -> u64 {
        let drawn = self.held.iter().flat_map(|held| &held.drawn);
        drawn.filter(|(of, ..)| of == tally).map(|(_, takes, _)| takes).sum()
    }

    /// What a charge has taken of limits.
    pub(super) fn count(&mut self, drawn: &[(Tally, u64, Taken)], charged: u64) {
        for (tally, takes, taken) in drawn {
            let used = if *taken == Taken::All { *takes } else { charged };
            self.tallies.entry(*tally).or_default().used += used;
            self.told[4] += used;
        }
    }

    pub(super) fn on_the_disk(&self, &(token, month, write, money): &Tally) -> u64 {
        let uses = self.run(self.sound.uses(hash(token), month)).expect("reads");
        let unit = if money { Unit::Msat } else { Unit::Request };
        let of = |used: &&MonthlyUse| used.capability == name(write) && used.unit == unit;
        uses.iter().find(of).map_or(0, |used| used.used)
    }
}
