package longlock

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Time goes on while somebody waits for a lock whose holder waits for it.
func TestTimeGoesOn(t *testing.T) {
	for name, lock := range map[string]sync.Locker{"Mutex": &Mutex{}, "RWMutex": &RWMutex{}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var all sync.WaitGroup
				held, most, rounds := 0, 0, 0
				for range 3 {
					all.Go(func() {
						lock.Lock()
						defer lock.Unlock()
						held++
						most = max(most, held)
						time.Sleep(time.Second)
						held--
						rounds++
					})
				}
				began := time.Now()
				all.Wait()
				if took := time.Since(began); most != 1 || rounds != 3 || took != 3*time.Second {
					t.Errorf("%d had it at once, %d at all, in %v", most, rounds, took)
				}
			})
		})
	}
}

func TestTryLock(t *testing.T) {
	var m Mutex
	if !m.TryLock() || m.TryLock() {
		t.Error("it is had twice, or by nobody")
	}
	m.Unlock()
	if !m.TryLock() {
		t.Error("what was given back is not free")
	}
	m.Unlock()
	defer func() {
		if recover() == nil {
			t.Error("what nobody has was unlocked")
		}
	}()
	m.Unlock()
}

// Readers are together, a writer is alone, and readers that come after it wait for it.
func TestReadersAndWriters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m RWMutex
		var got []string
		var mu sync.Mutex
		say := func(s string) { mu.Lock(); got = append(got, s); mu.Unlock() }
		var all sync.WaitGroup
		read := func() {
			m.RLock()
			defer m.RUnlock()
			time.Sleep(time.Second)
			say("r")
		}
		began := time.Now()
		all.Go(read)
		all.Go(read)
		time.Sleep(time.Millisecond)
		all.Go(func() { m.Lock(); time.Sleep(time.Second); say("w"); m.Unlock() })
		time.Sleep(time.Millisecond)
		all.Go(read)
		all.Wait()
		if took := time.Since(began); took != 3*time.Second || len(got) != 4 || got[2] != "w" {
			t.Errorf("%v in %v", got, took)
		}
	})
}
