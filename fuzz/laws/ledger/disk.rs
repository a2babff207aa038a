//! What becomes of the books on the disk: groups, crashes, restarts, and stores that fail or only say so.

use super::*;

impl World {
    pub(super) fn flush(&mut self) {
        match self.run(self.ledger.flush()) {
            Ok(()) => self.acknowledge(),
            Err(_) => self.in_doubt = true,
        }
    }

    fn acknowledge(&mut self) {
        assert_eq!(self.ledger.health().unwritten, 0);
        self.in_doubt = false;
        for token in &mut self.tokens {
            token.acked = (token.spent, token.written_off);
        }
        for tally in self.tallies.values_mut() {
            tally.acked = tally.used;
        }
        for (tally, used) in &self.tallies {
            assert_eq!(self.on_the_disk(tally), used.acked, "{tally:?}");
        }
        for (token, at) in (0..).zip(&self.tokens) {
            if at.opened {
                let account = self.run(Accounts::account(&*self.sound, hash(token))).expect("reads");
                let balance = account.expect("an account").balance;
                assert_eq!((balance.spent(), balance.written_off()), at.acked);
            }
        }
        self.audit();
    }

    /// The process is gone: what it held in memory, and whatever its tasks were about.
    pub(super) fn crash(&mut self) {
        drop(self.process.take());
        // They belong to a ledger that nobody writes for any more.
        self.held.clear();
        self.first.clear();
        self.open_again(false);
    }

    /// What is under way ends, and everything is written; unless the store won't.
    pub(super) fn restart(&mut self, story: &mut Story<'_>) {
        let works = !story.byte().is_multiple_of(4);
        if works {
            self.store.repair();
        }
        while let Some(held) = self.held.pop() {
            if held.due > 0 {
                self.charge_held(&held, held.due);
            }
            drop(held);
        }
        for (token, key, first) in std::mem::take(&mut self.first) {
            self.answers.remove(&(token, key));
            drop(first);
        }
        let lost = self.run(self.ledger.close());
        let refused = self.ledger.reserve_at_once(&hash(0), NonZeroU64::MIN);
        assert!(matches!(refused, None | Some(Err(Refused::Unavailable(Unavailable::Ended)))));
        match lost {
            0 => self.acknowledge(),
            _ => self.in_doubt = true,
        }
        assert!(!works || lost == 0, "{lost} commits were lost by a store that works");
        drop(self.process.take());
        self.open_again(works);
    }

    fn open_again(&mut self, closed: bool) {
        self.store.repair();
        self.process = Some(process());
        let last = self.run(self.sound.epochs(1)).expect("reads")[0];
        assert!(!closed || last.ended_at.is_some(), "{last:?}");
        self.ledger =
            self.run(Ledger::open(config(), self.store.clone(), self.clock.clone())).expect("opens");
        for number in 0..TOKENS {
            let account = self.run(Accounts::account(&*self.sound, hash(number))).expect("reads");
            let token = &mut self.tokens[number];
            let Some(account) = account else {
                assert!(!token.opened, "an account is gone");
                continue;
            };
            let (spent, written_off) = (account.balance.spent(), account.balance.written_off());
            assert!((token.acked.0..=token.spent).contains(&spent), "{spent} of {token:?}");
            assert!((token.acked.1..=token.written_off).contains(&written_off));
            assert!(self.in_doubt || (spent, written_off) == token.acked);
            self.told[3] += token.spent - spent;
            (token.spent, token.written_off) = (spent, written_off);
            token.acked = (spent, written_off);
            // Refunds are on the disk before anything else happens; what was in doubt is read back.
            (token.refunding, token.refunded) = (account.balance.refunding(), account.balance.refunded());
            token.opened = true;
        }
        self.month = Month(0);
        let tallies: Vec<Tally> = self.tallies.keys().copied().collect();
        for tally in tallies {
            let found = self.on_the_disk(&tally);
            let used = self.tallies.get_mut(&tally).expect("one of them");
            assert!((used.acked..=used.used).contains(&found), "{found} of {used:?}");
            assert!(self.in_doubt || found == used.acked);
            *used = Used { used: found, acked: found };
        }
        for (id, (_, amount, end)) in &mut self.refunds {
            let row =
                self.process.as_ref().expect("a process").block_on(self.sound.refund(RefundId([*id; 16])));
            let row = row.expect("reads");
            let found = row.and_then(|row| row.ended).map(|(end, _)| end);
            assert!(end.is_none() || *end == found, "a refund that had ended");
            (*amount, *end) = (row.map_or(*amount, |row| row.order.amount.get()), found);
        }
        // An answer is there with its debit or not at all.
        self.answers.clear();
        self.in_doubt = false;
    }

    pub(super) fn break_the_store(&mut self, story: &mut Story<'_>) {
        let text = String::new();
        let errors =
            [StoreError::Full(text.clone()), StoreError::Busy(text.clone()), StoreError::ReadOnly(text)];
        for _ in 0..=story.below(5) {
            let error = errors[story.below(3)].clone();
            let fault = match story.byte() % 5 {
                0 => Fault::None,
                1 => Fault::Fails(error),
                2 => Fault::FailsAfterwards(error),
                3 => Fault::Hangs,
                _ => Fault::HangsAfterwards,
            };
            self.store.next.lock().push_back(fault);
        }
    }
}
