//! What the paywall counts of its sales.

use super::*;

fn sales(shop: &Shop) -> Sales {
    shop.paywall.sales().get(&shop.service.name).copied().unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn challenges_and_sales_are_counted_by_service_and_money_as_it_comes() {
    let shop = Shop::open().await;
    assert!(shop.paywall.sales().is_empty());
    let (first, first_preimage) = shop.buy().await;
    let (second, second_preimage) = shop.buy().await;
    shop.challenge().await;
    assert_eq!(sales(&shop), Sales { challenges: 3, ..Sales::default() });
    running(&shop.paywall, async {
        // Paid, then shown.
        shop.node.settle(first.identifier().unwrap().payment_hash, 10_000);
        until_true(|| shop.paywall.health().money_booked == Msat::new(10_000)).await;
        assert_eq!(sales(&shop).purchases, 0, "nobody has said yet what for");
        check(&shop.get(&credential(&first, &first_preimage)).await, Code::Pass);
        until_true(|| sales(&shop).purchases == 1).await;
        // Shown, then overpaid.
        check(&shop.get(&credential(&second, &second_preimage)).await, Code::Pass);
        until_true(|| shop.paywall.health().presentations_booked == 2).await;
        shop.node.settle(second.identifier().unwrap().payment_hash, 10_500);
        until_true(|| sales(&shop).purchases == 2).await;
    })
    .await;
    let (paid, surplus) = (Msat::new(20_500), Msat::new(500));
    assert_eq!(sales(&shop), Sales { challenges: 3, purchases: 2, paid, surplus });
    let health = shop.paywall.health();
    assert_eq!((health.payments_booked, health.money_booked, health.presentations_queued), (2, paid, 0));
}
