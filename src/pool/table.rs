//! Members and routes as they are at a moment. A reload makes a new table and keeps the nodes that stay.

use std::sync::Arc;

use super::member::{MemberState, Model};
use super::node::Node;
use super::route::Route;
use crate::error::{Error, ErrorKind, Result};

#[derive(Default)]
pub struct Table {
    pub nodes: Vec<Arc<Node>>,
    pub routes: Vec<Arc<Route>>,
}

impl Table {
    /// Every node that is served under its own name, and routes beside them. A route takes the name of a model over.
    pub fn new(nodes: Vec<Arc<Node>>, served: &[Arc<Node>], configured: Vec<Route>) -> Self {
        let plain = served.iter().filter(|node| {
            let card = node.member.card();
            !configured.iter().any(|route| route.card().answers_to(&card.id))
        });
        let routes: Vec<_> = plain.map(Route::plain).collect();
        Self { nodes, routes: routes.into_iter().chain(configured).map(Arc::new).collect() }
    }

    /// The same with a route for each adapter that its members have now. Names that are taken stay what they are.
    #[must_use]
    pub fn with_adapters(&self) -> Self {
        let of_models = self.routes.iter().filter(|route| route.card().parent.is_none());
        let mut routes: Vec<Arc<Route>> = of_models.cloned().collect();
        for node in self.nodes.iter().filter(|node| node.is_local()) {
            for adapter in Arc::clone(&node.member).adapters() {
                if !routes.iter().any(|route| route.card().answers_to(&adapter.card().id)) {
                    routes.push(Arc::new(Route::plain(&Arc::new(node.beside(adapter)))));
                }
            }
        }
        Self { nodes: self.nodes.clone(), routes }
    }

    /// The route for `model`: by name or alias; a table of one also answers for an empty name.
    pub fn route(&self, model: &str) -> Result<&Arc<Route>> {
        let mut models = self.routes.iter().filter(|route| route.card().parent.is_none());
        if let (true, Some(only), None) = (model.is_empty(), models.next(), models.next()) {
            return Ok(only);
        }
        // A configured route has the first word about its names.
        let mut routes = self.routes.iter().rev();
        routes.find(|route| route.card().answers_to(model)).ok_or_else(|| {
            let known: Vec<_> = self.routes.iter().map(|route| route.card().id.clone()).collect();
            Error::new(
                ErrorKind::NotFound,
                format!("the model '{model}' does not exist here; this server has: {}", known.join(", ")),
            )
            .with_param("model")
            .with_code("model_not_found")
        })
    }

    /// Why requests cannot be answered yet: of local models all must be up, of the members of a route any.
    pub fn faults(&self) -> Vec<String> {
        let local = self.nodes.iter().filter(|node| node.is_local());
        let of_nodes = local.filter_map(|node| fault(&node.name, &node.member.state()));
        let routes = self.routes.iter().filter(|route| !route.is_plain && !route.nodes().any(|node| node.is_local()));
        of_nodes.chain(routes.filter_map(|route| fault(&route.name, &route.state()))).collect()
    }
}

fn fault(name: &str, state: &MemberState) -> Option<String> {
    match state {
        // Requests wait for it.
        MemberState::Ready | MemberState::Asleep(_) => None,
        MemberState::Loading(what) => Some(format!("{name}: {what}")),
        MemberState::Failed(why) => Some(format!("{name}: failed: {why}")),
    }
}
