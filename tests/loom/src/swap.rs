//! What `publish.rs` needs of `arc_swap` and `crossbeam`.

use std::ops::Deref;
use std::sync::Arc;

use loom::sync::Mutex;

/// A pointer that is stored and loaded as a whole.
#[derive(Debug)]
pub struct ArcSwap<T>(Mutex<Arc<T>>);

impl<T> ArcSwap<T> {
    /// One that holds `value`.
    pub fn from_pointee(value: T) -> Self {
        Self(Mutex::new(Arc::new(value)))
    }

    /// A share of what it holds.
    pub fn load_full(&self) -> Arc<T> {
        self.0.lock().expect("no panic under the lock").clone()
    }

    /// The same.
    pub fn load(&self) -> Arc<T> {
        self.load_full()
    }

    /// Puts another in its place; the storing side drops its share of the former.
    pub fn store(&self, new: Arc<T>) {
        let former = std::mem::replace(&mut *self.0.lock().expect("no panic under the lock"), new);
        drop(former);
    }
}

/// `arc_swap::cache`.
pub mod cache {
    use std::sync::Arc;

    use super::ArcSwap;

    /// A reader's share, replaced when the pointer has changed: the reader drops its share of the former.
    #[derive(Debug)]
    pub struct Cache<S, T> {
        source: S,
        held: T,
    }

    impl<T> Cache<Arc<ArcSwap<T>>, Arc<T>> {
        /// A reader of `source`.
        pub fn new(source: Arc<ArcSwap<T>>) -> Self {
            let held = source.load_full();
            Self { source, held }
        }

        /// What the pointer leads to now.
        pub fn load(&mut self) -> &Arc<T> {
            let now = self.source.load_full();
            if !Arc::ptr_eq(&now, &self.held) {
                self.held = now;
            }
            &self.held
        }
    }
}

/// `crossbeam::utils`.
pub mod utils {
    /// Padding is nothing to a model.
    #[derive(Debug)]
    pub struct CachePadded<T>(T);

    impl<T> CachePadded<T> {
        /// `value` alone.
        pub fn new(value: T) -> Self {
            Self(value)
        }
    }

    impl<T> super::Deref for CachePadded<T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.0
        }
    }
}
