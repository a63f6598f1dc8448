// Package gate holds work back: a disk's requests to the disk's limits, and all
// work to the CPU time that the process may use.
//
// Nouns: a [Door] is where the requests of one disk come in; it has [Limits] of
// its own and a [Flow]. A flow is a stream of work that takes part in a [Budget],
// the process's CPU time: one for each disk, and one for each kind of background
// work. An [Op] is what a request asks for, its cost what it is expected to take.
//
// # The budget
//
// A budget earns CPU time at the rate of its cores and pays for all that the
// process has used, as the kernel counts it: garbage collection, system calls and
// what no gate holds back included. While it has some left, work passes and is
// only counted. While it has not, the budget is short, and work waits for its turn
// by start-time fair queueing (Goyal, Vin, Cheng 1996): each flow has a virtual
// time up to which it has been served, which its work advances by cost over
// weight, and the one that is most behind goes next.
//
// Costs are estimates. They decide who goes next and how much goes between two
// looks at the kernel's clock; what is spent is what was measured. One factor
// for all (the scale) is learnt, so that the sum of estimates is the measured sum:
// the costs of destaging, networking and collecting are on who causes work.
//
// # Invariants
//
//   - Over any long time the process uses no more than its cores, as far as what
//     passes gates decides it.
//   - A flow that uses less than its fair share does not wait for one that uses
//     more: it passes although the budget is short, and the others pay.
//   - Every flow goes on, whatever the rest of the process uses: half of the budget
//     is promised to flows by time alone.
//   - A gate holds nothing while work waits, so that nothing waits for it there but
//     for its turn. Work for which others wait counts and does not wait.
//   - A request passes its disk's limits in the order in which it came, and none
//     waits there longer than limitWaitMax.
//
// # Concurrency
//
// All methods may be called at once. An open Budget has one goroutine, which Close
// ends; from then on all work passes. Where neither limits nor budget are short, a
// request costs an atomic addition to a counter of its disk's. Nobody takes a lock
// while holding another, and nothing is called under one.
//
// Errors: the context's, and [ErrInvalid].
package gate
