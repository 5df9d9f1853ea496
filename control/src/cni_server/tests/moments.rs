//! What holds at one moment of a call: networks that act, wait or look right then.

use super::*;
use std::sync::mpsc;

/// A network for which an ADD comes while it is asked who holds addresses.
struct Crossing {
    attachments: Arc<Attachments>,
    record: Attachment,
    released: Mutex<bool>,
}

impl PodNetwork for Crossing {
    fn add(&self, request: &AddRequest) -> Result<AddResult, CniFailure> {
        Notes::default().add(request)
    }

    fn delete(&self, _request: &DeleteRequest) -> Result<(), CniFailure> {
        Ok(())
    }

    fn check(&self, _attachment: &Attachment) -> Result<(), CniFailure> {
        Ok(())
    }

    fn status(&self) -> Result<(), CniFailure> {
        Ok(())
    }

    fn release(&self, _key: &AttachmentKey, _port: Option<PortIndex>) {
        *self.released.lock().expect("whole") = true;
    }

    fn holders(&self) -> Vec<AttachmentKey> {
        self.attachments.put(self.record.clone()).expect("written");
        vec![self.record.key.clone()]
    }
}

#[test]
fn collection_takes_no_address_from_an_add_that_crosses_it() {
    let place = Place::new();
    let (attachments, _) = Attachments::load(&place.record()).expect("readable");
    let attachments = Arc::new(attachments);
    let namespace = NetworkNamespace { path: place.namespace("n1").into(), inode: 1 };
    let record =
        Attachment { key: key("c1"), network: "millrace".into(), namespace, pod: None, further_to: None, port: None };
    let crossing = Arc::new(Crossing { attachments: attachments.clone(), record, released: Mutex::new(false) });
    let server = CniServer::new(crossing.clone(), attachments);
    server.collect(protocol::CollectRequest { network: "millrace".into(), valid: Vec::new() }).expect("collected");
    assert!(!*crossing.released.lock().expect("whole"));
}

/// A network in which taking away the container `c0` lasts until it is told to go on.
struct Slow {
    begun: Mutex<Option<mpsc::Sender<()>>>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

impl PodNetwork for Slow {
    fn add(&self, request: &AddRequest) -> Result<AddResult, CniFailure> {
        Notes::default().add(request)
    }

    fn delete(&self, request: &DeleteRequest) -> Result<(), CniFailure> {
        if request.key.container_id == "c0" {
            drop(self.begun.lock().expect("whole").take());
            let _ = self.go_on.lock().expect("whole").recv();
        }
        Ok(())
    }

    fn check(&self, _attachment: &Attachment) -> Result<(), CniFailure> {
        Ok(())
    }

    fn status(&self) -> Result<(), CniFailure> {
        Ok(())
    }

    fn release(&self, _key: &AttachmentKey, _port: Option<PortIndex>) {}

    fn holders(&self) -> Vec<AttachmentKey> {
        Vec::new()
    }
}

#[test]
fn a_delete_that_waited_takes_no_newer_attachment_away() {
    let place = Place::new();
    let (attachments, _) = Attachments::load(&place.record()).expect("readable");
    let ((begun, has_begun), (go_on, told)) = (mpsc::channel::<()>(), mpsc::channel::<()>());
    let slow = Slow { begun: Mutex::new(Some(begun)), go_on: Mutex::new(told) };
    let server = CniServer::new(Arc::new(slow), Arc::new(attachments)).with_state_directory(place.directory.clone());
    for container in ["c0", "c1"] {
        let request = protocol::DeleteRequest { container_id: container.into(), ..delete(None) };
        pending::leave(&place.directory, &request).expect("left");
    }
    std::thread::scope(|scope| {
        let taking_up = scope.spawn(|| server.take_up_pending());
        // Both requests are read by now. The runtime uses the second name again.
        assert!(has_begun.recv().is_err(), "the sender is dropped");
        server.add(add(&place.namespace("n1"))).expect("attached");
        drop(go_on);
        assert!(taking_up.join().expect("no panic").is_empty());
    });
    let left: Vec<AttachmentKey> = server.attachments.all().into_iter().map(|record| record.key).collect();
    assert_eq!(left, [key("c1")]);
}

/// A network that looks at the record of attachments when it is asked to take a pod away, as the next process would if
/// this one died right there.
struct Witness {
    record: PathBuf,
    whole: Mutex<Vec<bool>>,
    refuse: bool,
}

impl PodNetwork for Witness {
    fn add(&self, request: &AddRequest) -> Result<AddResult, CniFailure> {
        Notes::default().add(request)
    }

    fn delete(&self, _request: &DeleteRequest) -> Result<(), CniFailure> {
        let (recorded, _) = Attachments::load(&self.record).expect("readable");
        let whole = recorded.all().iter().any(|record| record.port.is_some());
        self.whole.lock().expect("no test panics here").push(whole);
        if self.refuse { Err(CniFailure::NotReady("told to refuse".into())) } else { Ok(()) }
    }

    fn check(&self, _attachment: &Attachment) -> Result<(), CniFailure> {
        Ok(())
    }

    fn status(&self) -> Result<(), CniFailure> {
        Ok(())
    }

    fn release(&self, _key: &AttachmentKey, _port: Option<PortIndex>) {}

    fn holders(&self) -> Vec<AttachmentKey> {
        Vec::new()
    }
}

#[test]
fn an_agent_that_dies_in_delete_leaves_an_attachment_that_is_not_whole() {
    for refuse in [false, true] {
        let place = Place::new();
        let namespace = place.namespace("n1");
        let (attachments, _) = Attachments::load(&place.record()).expect("readable");
        let witness = Arc::new(Witness { record: place.record(), whole: Mutex::default(), refuse });
        let server = CniServer::new(witness.clone(), Arc::new(attachments));
        server.add(add(&namespace)).expect("attached");
        assert_eq!(server.delete(delete(Some(&namespace))).is_ok(), !refuse);
        assert_eq!(*witness.whole.lock().expect("no test panics here"), [false]);
        let left = server.attachments.all();
        assert_eq!(
            left.iter().map(|record| record.port.is_some()).collect::<Vec<_>>(),
            vec![true; usize::from(refuse)]
        );
    }
}
