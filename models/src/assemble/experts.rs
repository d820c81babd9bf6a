//! A layer's experts, one packed pair of matrices each.

use super::{Assembler, Place, Plan, activation};
use crate::error::Result;
use crate::layers::{Choice, ExpertMlp, Moe, SharedExpert};
use crate::names::{Expert, LayerPart, Part};
use crate::spec::Experts;

impl<P: Place> Assembler<'_, P> {
    pub(super) fn experts(&mut self, plan: &Plan, index: usize, experts: &Experts) -> Result<Moe<P::Matrix>> {
        let hidden = plan.spec.hidden;
        let norm = self.rms_norm(plan, Part::Layer(index, LayerPart::MlpNorm))?;
        let router = [((LayerPart::Router, LayerPart::RouterBias), experts.count)];
        let router = self.linear(index, &router, hidden, experts.has_bias)?;
        let all = (0..experts.count).map(|expert| self.expert(plan, index, experts, expert));
        Ok(Moe {
            norm,
            router,
            experts: all.collect::<Result<Vec<_>>>()?,
            shared: self.shared_expert(plan, index, experts)?,
            choice: self.choice(index, experts)?,
            activation: activation(plan.spec),
            join: self.join(plan, None)?,
        })
    }

    fn choice(&mut self, index: usize, experts: &Experts) -> Result<Choice> {
        let Experts { per_token, normalised, routing, count, .. } = *experts;
        let correction = match routing.corrected {
            true => Some(self.vector(Part::Layer(index, LayerPart::RouterCorrection), count)?.to_vec1()?),
            false => None,
        };
        Ok(Choice { per_token, normalised, routing, correction })
    }

    fn expert(&mut self, plan: &Plan, index: usize, experts: &Experts, expert: usize) -> Result<ExpertMlp<P::Matrix>> {
        let (hidden, ffn, has_bias) = (plan.spec.hidden, experts.ffn, experts.has_bias);
        let expert = Expert { index: expert, of: experts.count };
        let gate = (LayerPart::ExpertGate(expert), LayerPart::ExpertGateBias(expert));
        let up = (LayerPart::ExpertUp(expert), LayerPart::ExpertUpBias(expert));
        let down = (LayerPart::ExpertDown(expert), LayerPart::ExpertDownBias(expert));
        Ok(ExpertMlp {
            gate_up: self.expert_linear(index, &[(gate, ffn), (up, ffn)], hidden, has_bias)?,
            down: self.expert_linear(index, &[(down, hidden)], ffn, has_bias)?,
        })
    }

    fn shared_expert(
        &mut self,
        plan: &Plan,
        index: usize,
        experts: &Experts,
    ) -> Result<Option<SharedExpert<P::Matrix>>> {
        let (hidden, ffn) = (plan.spec.hidden, experts.shared_ffn);
        if ffn == 0 {
            return Ok(None);
        }
        // None of these has a bias; the second name is never asked for.
        let plain = |part| (part, part);
        let gate_up = [(plain(LayerPart::SharedGate), ffn), (plain(LayerPart::SharedUp), ffn)];
        let mlp = ExpertMlp {
            gate_up: self.linear(index, &gate_up, hidden, false)?,
            down: self.linear(index, &[(plain(LayerPart::SharedDown), hidden)], ffn, false)?,
        };
        let router = match experts.routing.gates_shared {
            true => Some(self.linear(index, &[(plain(LayerPart::SharedRouter), 1)], hidden, false)?),
            false => None,
        };
        Ok(Some(SharedExpert { mlp, router }))
    }
}
