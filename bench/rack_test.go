package bench

import (
	"flag"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"
)

var rackWhole = flag.Bool("rack-whole", false, "TestSimRackModel goes through all sizes and rates")

// outcome is what came of a simulation.
type outcome struct {
	asked, acked            float64 // writes a second, over all hosts
	p50, p99, longest       time.Duration
	cpu, net, device, drive float64 // the busiest node's, parts of 1
	logMost                 int64
}

func simulateRack(c rackConfig) (o outcome) {
	m := newRackModel(c)
	m.run()
	o.asked = c.WritesPerHost * float64(c.Hosts)
	o.acked = float64(m.acked) / (c.Time - c.Time/3).Seconds()
	o.longest = m.longest
	slices.Sort(m.latencies)
	if n := len(m.latencies); n > 0 {
		o.p50, o.p99 = m.latencies[n/2], m.latencies[n*99/100]
	}
	for _, n := range m.nodes {
		o.cpu = max(o.cpu, n.cpu.used(c.Time))
		o.net = max(o.net, n.in.used(c.Time))
		o.device = max(o.device, n.device.used(c.Time))
		for i := range n.spindles {
			o.drive = max(o.drive, float64(n.spindles[i].busy)/float64(c.Time))
		}
		o.logMost = max(o.logMost, n.logMost)
	}
	return o
}

func (o outcome) String() string {
	return fmt.Sprintf("%.2f M/s of %.2f | p50 %v, p99 %v, longest %v | CPU %.0f %%, network %.0f %%, log device %.0f %%, drives %.0f %%, log %.1f GiB",
		o.acked/1e6, o.asked/1e6, o.p50.Round(time.Microsecond), o.p99.Round(10*time.Microsecond), o.longest.Round(time.Millisecond),
		100*o.cpu, 100*o.net, 100*o.device, 100*o.drive, float64(o.logMost)/(1<<30))
}

// The parts of the model are as queueing theory has them.
func TestSimRackModelParts(t *testing.T) {
	// M/D/1: the mean wait is rho/(2(1-rho)) of the time of one.
	m := newRackModel(rackConfig{Seed: 7, Time: time.Hour})
	const rho, takes, count = 0.8, time.Millisecond, 400_000
	s, waited := servers(1), time.Duration(0)
	for at, n := time.Duration(0), 0; n < count; n++ {
		at += time.Duration(m.Rand.ExpFloat64() * float64(takes) / rho)
		waited += s.serve(at, takes) - takes - at
	}
	if got, want := float64(waited)/count/float64(takes), rho/(2*(1-rho)); math.Abs(got-want) > 0.1*want {
		t.Errorf("a queue waits for %.2f times, theory says %.2f", got, want)
	}
	// What waits for a batcher goes together, and no more than it takes.
	var ends []time.Duration
	b := batcher{q: m.Queue, most: 3, cost: func(n int, bytes int64) moment { return time.Second + time.Duration(bytes) }}
	for range 5 {
		b.add(1, func() { ends = append(ends, m.Now) })
	}
	m.run()
	want := []time.Duration{1e9 + 1, 2e9 + 4, 2e9 + 4, 2e9 + 4, 3e9 + 5}
	if !slices.Equal(ends, want) {
		t.Errorf("batches end at %v, want %v", ends, want)
	}
}

// Hosts over ten data nodes: below what they carry all is served, above it a part that
// the table names is busy all the time, and a node that dies is a pause.
func TestSimRackModel(t *testing.T) {
	c := rackDefault()
	c.Hosts, c.Time, c.WritesPerHost = 16, 6*time.Second, 4000
	o := simulateRack(c)
	if again := simulateRack(c); again != o {
		t.Errorf("the same seed gives %v and %v", o, again)
	}
	if o.acked < 0.97*o.asked {
		t.Errorf("16 hosts at 4,000: %v", o)
	}
	c.Nodes, c.WritesPerHost = 3, 60_000
	if o := simulateRack(c); o.acked > 0.97*o.asked || max(o.cpu, o.net, o.device, o.drive) < 0.8 {
		t.Errorf("three nodes carry what they cannot, or nothing is busy: %v", o)
	}
	c.WritesPerHost, c.DeadNode = 2000, 3*time.Second
	c.Nodes = 10
	if o := simulateRack(c); o.longest < c.CallTime || o.longest > 2*c.CallTime || o.acked < 0.95*o.asked {
		t.Errorf("a node dies: %v", o)
	}
	if !*rackWhole {
		return
	}
	for _, hosts := range []int{32, 64, 128} {
		for _, rate := range []float64{1000, 5000, 10_000, 15_000, 18_000, 20_000, 25_000, 40_000, 60_000, 80_000} {
			c := rackDefault()
			c.WritesPerHost, c.Hosts = rate, hosts
			o := simulateRack(c)
			t.Logf("%3d hosts, %6.0f writes/s each: %v", hosts, rate, o)
			if o.acked < 0.97*o.asked {
				break
			}
		}
	}
	for _, what := range []struct {
		name string
		set  func(c *rackConfig)
	}{
		{"spindles that seek for 8 ms and have 100 MB/s", func(c *rackConfig) { c.SpindleRate = 100e6 }},
		{"4 spindles a node", func(c *rackConfig) { c.NodeSpindles = 4 }},
		{"logs of 4 GiB", func(c *rackConfig) { c.LogBytes = 4 << 30 }},
		{"nodes of 4 cores", func(c *rackConfig) { c.NodeCores = 4 }},
		{"10 Gbit/s", func(c *rackConfig) { c.NodeNet = 10e9 / 8 }},
		{"log devices of 4 GB/s, 100 Gbit/s", func(c *rackConfig) { c.LogRate, c.NodeNet = 4e9, 100e9/8 }},
		{"the same and spindles without seeks, 2 GB/s", func(c *rackConfig) {
			c.LogRate, c.NodeNet, c.SpindleSeek, c.SpindleRate = 4e9, 100e9/8, 100*time.Microsecond, 2e9
		}},
	} {
		for _, rate := range []float64{8000, 16_000, 20_000, 24_000, 32_000, 40_000} {
			c := rackDefault()
			c.WritesPerHost = rate
			what.set(&c)
			o := simulateRack(c)
			t.Logf("%s, %3d hosts, %6.0f writes/s each: %v", what.name, c.Hosts, rate, o)
			if o.acked < 0.97*o.asked {
				break
			}
		}
	}
	for _, hosts := range []int{8, 32, 128} {
		c := rackDefault()
		c.Hosts, c.DeadNode = hosts, 6*time.Second
		t.Logf("a node dies, %3d hosts: %v", hosts, simulateRack(c))
	}
}
