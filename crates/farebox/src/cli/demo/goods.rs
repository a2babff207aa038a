//! What the demo sells: one service, by its flags, or a seller's own configuration; and what answers behind it.

use std::{num::NonZeroU32, path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use farebox_gateway::{GatewayConfig, ServiceRoute, Timeouts, UpstreamConfig, UpstreamUrl};
use farebox_paywall::{PaywallConfig, Rate, Service, price::Cost, receipt::SellerName};
use farebox_protocol::Network;
use tokio::net::{TcpStream, UnixStream};

use super::{Args, DRAIN, counters::Counter, tell::Teller};
use crate::config::{RefundSettings, demo, problem::located};

/// What is sold, less the addresses and directories, which are the stage's.
pub(super) struct Goods {
    pub(super) paywall: PaywallConfig,
    pub(super) gateway: GatewayConfig,
    pub(super) refunds: Option<RefundSettings>,
    pub(super) signs_receipts_as: Option<SellerName>,
    pub(super) behind: Behind,
    /// Where each service is had, in their order.
    pub(super) counters: Vec<Counter>,
    /// What the file says and the demo does otherwise, by key.
    pub(super) replaced: Vec<String>,
}

/// What answers those who have paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// The seller's own.
    Upstream,
    /// The sample API.
    Sample,
    /// What answers everything.
    Echo,
}

impl Goods {
    /// Reads what there is to sell, and makes sure that something answers there before anybody pays.
    pub(super) async fn gather(args: &Args, tell: &Teller) -> Result<Self> {
        let goods = match &args.config {
            Some(file) => Self::of_file(file, args.echo, tell)?,
            None => Self::of_flags(args)?,
        };
        match args.config {
            Some(_) => goods.without_the_silent(tell).await,
            None => {
                if let Some(upstream) = &args.upstream {
                    reach(upstream).await.with_context(|| {
                        format!(
                            "nothing answers at `{upstream}`; start your API first, or correct --upstream"
                        )
                    })?;
                }
                Ok(goods)
            }
        }
    }

    fn of_flags(args: &Args) -> Result<Self> {
        let (name, behind) = match (&args.upstream, args.echo) {
            (Some(_), _) => ("api", Behind::Upstream),
            (None, true) => ("echo", Behind::Echo),
            (None, false) => ("sun", Behind::Sample),
        };
        let mut service = Service::new(name.parse()?, args.price, args.offer());
        service.costs.otherwise = args.cost.map(|cost| Arc::new(Cost::Fixed(cost)));
        if behind == Behind::Sample {
            service.free_paths = vec!["/".parse()?];
        }
        service.validate().context(if args.credit { "--price and --cost" } else { "--price" })?;
        let upstream = args.upstream.clone().map_or_else(nowhere, Ok)?;
        let mut services = vec![ServiceRoute::new(service, UpstreamConfig::new(upstream))];
        let mut counters = Counter::all(&mut services);
        if behind == Behind::Sample {
            counters[0].path = "/v1/sun?lat=52.52&lon=13.40".to_owned();
        }
        Ok(Self {
            paywall: PaywallConfig {
                // One person plays with it, perhaps with a load generator.
                mint_per_client: Rate::per_second(const { NonZeroU32::new(100_000).expect("above zero") }),
                mint_total: Rate::per_second(const { NonZeroU32::new(100_000).expect("above zero") }),
                ..PaywallConfig::new(Network::Regtest)
            },
            gateway: GatewayConfig {
                services,
                timeouts: Timeouts { drain: DRAIN, ..Timeouts::default() },
                ..GatewayConfig::default()
            },
            refunds: None,
            signs_receipts_as: None,
            behind,
            counters,
            replaced: Vec::new(),
        })
    }

    fn of_file(file: &Path, echo: bool, tell: &Teller) -> Result<Self> {
        let demo::ForDemo { config, replaced } = demo::load(file, echo)?;
        for note in config.notes.iter().chain(&replaced) {
            tell.warn(format_args!("{}", located(Some(file), note)));
        }
        let mut gateway = config.gateway;
        gateway.timeouts.drain = gateway.timeouts.drain.min(DRAIN);
        let counters = Counter::all(&mut gateway.services);
        Ok(Self {
            paywall: config.paywall,
            counters,
            gateway,
            refunds: config.refunds,
            signs_receipts_as: config.signs_receipts_as,
            behind: if echo { Behind::Echo } else { Behind::Upstream },
            replaced: replaced.into_iter().map(|problem| problem.key).collect(),
        })
    }

    /// Says which services have nothing behind them. An error where that leaves nothing to buy.
    async fn without_the_silent(mut self, tell: &Teller) -> Result<Self> {
        if self.behind != Behind::Upstream {
            return Ok(self);
        }
        for (route, counter) in self.gateway.services.iter().zip(&mut self.counters) {
            let mut answered = false;
            for url in &route.upstream.urls {
                answered |= reach(url).await.is_ok();
            }
            if !answered {
                let urls: Vec<_> = route.upstream.urls.iter().map(ToString::to_string).collect();
                let (urls, name) = (urls.join("`, `"), &counter.name);
                tell.warn(format_args!("nothing answers at `{urls}`, behind the service `{name}`"));
                counter.is_silent = true;
            }
        }
        let mut paid = self.counters.iter().filter(|counter| counter.is_paid).peekable();
        anyhow::ensure!(
            paid.peek().is_none() || paid.any(|counter| !counter.is_silent),
            "there is nothing to buy: no API answers behind the services that have to be paid; start one, or let an echo answer \
             for all of them with --echo"
        );
        Ok(self)
    }
}

/// To be replaced by the address of what the demo serves itself.
fn nowhere() -> Result<UpstreamUrl> {
    Ok("http://127.0.0.1:1".parse()?)
}

/// Whether anything listens there.
async fn reach(upstream: &UpstreamUrl) -> std::io::Result<()> {
    match upstream.socket() {
        Some(path) => UnixStream::connect(path).await.map(drop),
        None => {
            let host = upstream.authority().host().trim_start_matches('[').trim_end_matches(']');
            TcpStream::connect((host, upstream.port())).await.map(drop)
        }
    }
}
