//! LDK's key-value store in memory, for nodes that keep nothing.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use lightning::io::{Error, ErrorKind};
use lightning::util::persist::{KVStore, KVStoreSync};
use parking_lot::Mutex;

/// Two namespaces, then the key.
type Place = (String, String, String);
type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

/// A store that is gone with its last handle. Clones share what is in it.
#[derive(Clone, Default)]
pub(super) struct MemStore(Arc<Mutex<BTreeMap<Place, Vec<u8>>>>);

fn place(primary: &str, secondary: &str, key: &str) -> Place {
    (primary.to_owned(), secondary.to_owned(), key.to_owned())
}

impl KVStoreSync for MemStore {
    fn read(&self, primary: &str, secondary: &str, key: &str) -> Result<Vec<u8>, Error> {
        let found = self.0.lock().get(&place(primary, secondary, key)).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, "no such key"))
    }

    fn write(&self, primary: &str, secondary: &str, key: &str, value: Vec<u8>) -> Result<(), Error> {
        self.0.lock().insert(place(primary, secondary, key), value);
        Ok(())
    }

    fn remove(&self, primary: &str, secondary: &str, key: &str, _lazy: bool) -> Result<(), Error> {
        self.0.lock().remove(&place(primary, secondary, key));
        Ok(())
    }

    fn list(&self, primary: &str, secondary: &str) -> Result<Vec<String>, Error> {
        let map = self.0.lock();
        let from = place(primary, secondary, "");
        let inside = map.range(from..).take_while(|((p, s, _), _)| p == primary && s == secondary);
        Ok(inside.map(|((_, _, key), _)| key.clone()).collect())
    }
}

// Each call is carried out before its future is returned: LDK wants writes to one key to happen in the order of the calls.
impl KVStore for MemStore {
    fn read(&self, primary: &str, secondary: &str, key: &str) -> Answer<Vec<u8>> {
        ready(KVStoreSync::read(self, primary, secondary, key))
    }

    fn write(&self, primary: &str, secondary: &str, key: &str, value: Vec<u8>) -> Answer<()> {
        ready(KVStoreSync::write(self, primary, secondary, key, value))
    }

    fn remove(&self, primary: &str, secondary: &str, key: &str, lazy: bool) -> Answer<()> {
        ready(KVStoreSync::remove(self, primary, secondary, key, lazy))
    }

    fn list(&self, primary: &str, secondary: &str) -> Answer<Vec<String>> {
        ready(KVStoreSync::list(self, primary, secondary))
    }
}

fn ready<T: Send + 'static>(answer: Result<T, Error>) -> Answer<T> {
    Box::pin(std::future::ready(answer))
}
