//! Money back: begun, in doubt, and ended once.

use super::*;

impl World {
    pub(super) fn begin_refund(&mut self, story: &mut Story<'_>) {
        let (id, token, amount) = (story.byte() % 8, story.below(TOKENS), story.units());
        let order = RefundOrder {
            id: RefundId([id; 16]),
            hash: hash(token),
            of: RefundOf::Credit,
            amount: Msat::new(amount),
            at: Timestamp::from_secs(START),
        };
        let known = self.refunds.get(&id).copied();
        let outcome = self.run(self.ledger.begin_refund(order));
        let is_credit = allotment(token).unit == Unit::Msat;
        match outcome {
            Ok(()) => match known {
                Some((of, was, _)) => assert_eq!((of, was), (token, amount), "begun as something else"),
                None => {
                    assert!(is_credit && amount > 0 && amount <= self.left(token));
                    self.tokens[token].refunding += amount;
                    self.refunds.insert(id, (token, amount, None));
                }
            },
            Err(RefundError::Store(StoreError::OtherRefund)) => {
                assert!(known.is_some_and(|(of, was, _)| (of, was) != (token, amount)));
            }
            Err(RefundError::Store(StoreError::NotThere)) => {
                assert!(!is_credit || amount == 0 || !self.tokens[token].opened);
            }
            Err(RefundError::UnderWay) => self.wait_or_crash(story, order),
            Err(RefundError::Refused(_) | RefundError::Store(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }

    /// Nobody knows what has become of a refund; it is asked for again until somebody does, or the process ends.
    fn wait_or_crash(&mut self, story: &mut Story<'_>, order: RefundOrder) {
        let before = self.refunds.len();
        let id = order.id.0[0];
        let token = (0..TOKENS).find(|token| hash(*token) == order.hash).expect("one of ours");
        if story.byte().is_multiple_of(2) {
            self.crash();
        } else {
            self.store.repair();
            self.run(async { tokio::time::sleep(std::time::Duration::from_secs(10)).await });
        }
        let row = self.run(self.sound.refund(order.id)).expect("reads");
        if let (Some(row), false) = (row, self.refunds.contains_key(&id)) {
            assert_eq!(row.order.amount, order.amount);
            self.refunds.insert(id, (token, order.amount.get(), None));
            let balance = self.run(Accounts::account(&*self.sound, order.hash)).expect("reads");
            self.tokens[token].refunding = balance.expect("an account").balance.refunding();
        }
        assert!(self.refunds.len() - before <= 1);
    }

    pub(super) fn end_refund(&mut self, story: &mut Story<'_>) {
        let id = story.byte() % 8;
        let end = match story.byte() {
            part if part.is_multiple_of(3) => Refund::Part(Msat::new(u64::from(part % 16) + 1)),
            whole if whole.is_multiple_of(2) => Refund::Paid,
            _ => Refund::Failed,
        };
        let mut outcome = self.run(self.ledger.end_refund(RefundId([id; 16]), end));
        while outcome == Err(RefundError::UnderWay) {
            self.store.repair();
            self.run(async { tokio::time::sleep(std::time::Duration::from_secs(10)).await });
            outcome = self.run(self.ledger.end_refund(RefundId([id; 16]), end));
        }
        match (outcome, self.refunds.get_mut(&id)) {
            (Ok(row), Some((token, amount, ended))) => {
                let (found, _) = row.ended.expect("it has ended");
                if let Some(ended) = ended {
                    assert_eq!(found, *ended, "the first end stays");
                    return;
                }
                let (want, refunded) = match end {
                    Refund::Paid => (Refund::Paid, *amount),
                    Refund::Part(part) => (Refund::Paid, part.get().min(*amount)),
                    Refund::Failed => (Refund::Failed, 0),
                };
                assert_eq!(found, want);
                *ended = Some(want);
                let token = &mut self.tokens[*token];
                token.refunding -= *amount;
                token.refunded += refunded;
                self.told[1] += refunded;
                if let Refund::Part(_) = end {
                    // From now on the books say that it was asked for so much.
                    *amount = refunded;
                }
            }
            (Ok(row), None) => panic!("{row:?} from nowhere"),
            (Err(RefundError::Store(StoreError::NotThere)), known) => assert!(known.is_none()),
            (Err(RefundError::Refused(_) | RefundError::Store(_)), _) => {}
            (Err(other), _) => panic!("{other}"),
        }
    }
}
