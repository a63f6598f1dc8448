// Package longlock has locks that are held while their holder waits for others: for a
// data node, a device or a timer. Who waits for one waits in a channel. In simulated
// time (testing/synctest) a goroutine that waits for a sync.Mutex counts as busy, so
// that time stands still until its holder goes on, which may be waiting for time.
package longlock

import (
	"context"
	"math"
	"sync"

	"golang.org/x/sync/semaphore"
)

// Mutex is a sync.Mutex to be held long. The zero value is unlocked.
type Mutex struct {
	once sync.Once
	room chan struct{} // of one
}

func (m *Mutex) init() { m.once.Do(func() { m.room = make(chan struct{}, 1) }) }

// Lock waits until nobody has m, and takes it.
func (m *Mutex) Lock() {
	m.init()
	m.room <- struct{}{}
}

// TryLock takes m if nobody has it, and reports that.
func (m *Mutex) TryLock() bool {
	m.init()
	select {
	case m.room <- struct{}{}:
		return true
	default:
		return false
	}
}

// Unlock gives m back. It panics if nobody has it.
func (m *Mutex) Unlock() {
	m.init()
	select {
	case <-m.room:
	default:
		panic("longlock: unlock of an unlocked mutex")
	}
}

// RWMutex is a sync.RWMutex to be held long: readers that come while a writer waits wait
// too. The zero value is unlocked.
type RWMutex struct {
	once sync.Once
	all  *semaphore.Weighted // a reader has 1 of it, a writer all
}

const everything = math.MaxInt64

func (m *RWMutex) acquire(n int64) {
	m.once.Do(func() { m.all = semaphore.NewWeighted(everything) })
	if err := m.all.Acquire(context.Background(), n); err != nil {
		panic(err) // that context does not end
	}
}

// Lock waits until nobody has m, and takes it alone.
func (m *RWMutex) Lock() { m.acquire(everything) }

// Unlock undoes Lock.
func (m *RWMutex) Unlock() { m.all.Release(everything) }

// RLock waits until nobody has m alone, and takes it with others.
func (m *RWMutex) RLock() { m.acquire(1) }

// RUnlock undoes RLock.
func (m *RWMutex) RUnlock() { m.all.Release(1) }
