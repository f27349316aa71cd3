//! A web service whose two endpoints share one region: users are cheap to find, reports are expensive to make.
//!
//! `scripts/demo-service` starts two processes of it and throws requests at them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use dogpile::{GetError, Msgpack, Redis, RedisLock, Region};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::TaskTracker;

const HELP: &str = "\
A web service: GET /users/{id} is cheap, GET /reports/{id} is expensive, GET /stats shows what the cache did.
Its cache is the Redis that REDIS_URL names, or redis://127.0.0.1.

Usage: cargo run --release [-- OPTIONS]
  --port N         where to listen on 127.0.0.1, 0 for any free port (default 3000)
  --creator-ms N   how long it takes to make a report (default 500)
  --fresh-ms N     how old a value gets before it is made anew (default 60000)";

/// A plain handle, to be cloned or shared as one likes. The parts that were not chosen have defaults.
type Cache = Region<Redis, Msgpack, RedisLock>;

struct App {
    cache: Cache,
    report_takes: Duration,
    users_found: AtomicU64,
    reports_made: AtomicU64,
}

#[derive(Serialize)]
struct User {
    id: u64,
    name: String,
}

#[derive(Serialize)]
struct Report {
    id: u64,
    orders: u64,
    total: u64,
}

// How they are kept. How they are answered is serde's.
dogpile::msgpack! {
    User { id, name }
    Report { id, orders, total }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(options) = options()? else {
        println!("{HELP}");
        return Ok(());
    };
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1".into());
    // What is made in the background is waited for at the end: cut short, it would leave its lock until the lease ends.
    let refreshes = TaskTracker::new();
    let running = refreshes.clone();
    // A lease must outlive the slowest creator: when it ends, another process may begin.
    let lease = options.report_takes + Duration::from_secs(5);
    let cache = Region::builder(Redis::open(&url)?)
        .lock(RedisLock::new().lease(lease))
        .stale_after(options.fresh)
        // Longer than the expiry, so that there is a stale value to answer with while a new one is made.
        .ttl(options.fresh + Duration::from_secs(600))
        // Long enough to see a crashed process's lease end, and a report made after it.
        .wait_timeout(2 * lease)
        .task_runner(move |job| drop(running.spawn(job)))
        .build()?;
    // No reason not to start: while Redis is down values are created all the same, by one caller of this process.
    if let Err(error) = cache.backend().ping_async().await {
        eprintln!("starting without a cache: {error}");
    }

    let app = App { cache, report_takes: options.report_takes, users_found: 0.into(), reports_made: 0.into() };
    let router = Router::new()
        .route("/users/{id}", get(user))
        .route("/reports/{id}", get(report))
        .route("/stats", get(stats))
        .with_state(Arc::new(app));
    let listener = TcpListener::bind(("127.0.0.1", options.port)).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, router).with_graceful_shutdown(told_to_stop()?).await?;
    refreshes.close();
    refreshes.wait().await;
    Ok(())
}

/// A user is a field of the hash `users`. The creator may borrow: it lives no longer than the request.
async fn user(State(app): State<Arc<App>>, Path(id): Path<u64>) -> Result<Json<User>, Failure> {
    let user = app.cache.get_or_create_async(("users", id), async || app.find_user(id).await).await?;
    Ok(Json(user))
}

/// A report is a plain key. Where it is stale it is answered with at once, and made anew in the background; so the
/// creator owns what it needs.
///
/// A client that goes away drops this future, and with it a creator that this request was waiting for. The lock is
/// released, and another request that waits for the report makes it.
async fn report(State(app): State<Arc<App>>, Path(id): Path<u64>) -> Result<Json<Report>, Failure> {
    let maker = Arc::clone(&app);
    let report = app.cache.get_or_refresh_async(format!("report-{id}"), async move || maker.make_report(id).await);
    Ok(Json(report.await?))
}

async fn stats(State(app): State<Arc<App>>) -> Json<Value> {
    let region = app.cache.stats();
    Json(json!({
        "creators": {
            "users": app.users_found.load(Ordering::Relaxed),
            "reports": app.reports_made.load(Ordering::Relaxed),
        },
        "region": {
            "creations": region.creations,
            "failed_creations": region.failed_creations,
            "coalesced": region.coalesced,
            "stale_hits": region.stale_hits,
            "undecodable": region.undecodable,
            "wrong_type": region.wrong_type,
            "failed_reads": region.failed_reads,
            "failed_locks": region.failed_locks,
            "failed_writes": region.failed_writes,
        },
    }))
}

impl App {
    /// Stands for a query that is quick.
    async fn find_user(&self, id: u64) -> Result<User, NotThere> {
        self.users_found.fetch_add(1, Ordering::Relaxed);
        let name = match id {
            1 => "Ann",
            2 => "Ben",
            3 => "Cleo",
            _ => return Err(NotThere("user", id)),
        };
        Ok(User { id, name: name.into() })
    }

    /// Stands for queries that take long. There is no report 0.
    async fn make_report(&self, id: u64) -> Result<Report, NotThere> {
        self.reports_made.fetch_add(1, Ordering::Relaxed);
        if id == 0 {
            return Err(NotThere("report", id));
        }
        tokio::time::sleep(self.report_takes).await;
        let orders = id % 100;
        Ok(Report { id, orders, total: (1..=orders).sum() })
    }
}

/// The creators' error: what there is none of. It is not cached, so the next request looks again.
struct NotThere(&'static str, u64);

/// What a request is answered with that cannot be served: a status and a sentence.
struct Failure(StatusCode, String);

impl From<GetError<NotThere>> for Failure {
    fn from(error: GetError<NotThere>) -> Self {
        match error {
            GetError::Create(NotThere(what, id)) => {
                Failure(StatusCode::NOT_FOUND, format!("There is no {what} {id}.\n"))
            }
            // Waiting for others took longer than the region's patience; Redis being down does not get here. The
            // sentence names servers and keys, so it is not for clients.
            GetError::Cache(error) => {
                eprintln!("{error}");
                Failure(StatusCode::SERVICE_UNAVAILABLE, "This takes too long; try again in a moment.\n".into())
            }
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

/// Ends on ctrl-c, or when the system asks the process to terminate; requests under way are then still answered.
fn told_to_stop() -> std::io::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

struct Options {
    port: u16,
    report_takes: Duration,
    fresh: Duration,
}

/// The options, or `None` when only help is wanted.
fn options() -> Result<Option<Options>, lexopt::Error> {
    use lexopt::prelude::*;
    let mut options = Options { port: 3000, report_takes: Duration::from_millis(500), fresh: Duration::from_secs(60) };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("port") => options.port = arguments.value()?.parse()?,
            Long("creator-ms") => options.report_takes = Duration::from_millis(arguments.value()?.parse()?),
            Long("fresh-ms") => options.fresh = Duration::from_millis(arguments.value()?.parse()?),
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(options))
}
