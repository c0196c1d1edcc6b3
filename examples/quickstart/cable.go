package main

import (
	"context"
	"crypto/rand"
	"net"
	"sync"

	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/transport"
	"github.com/quarklink-go/quarklink/transport/uart"
)

// cable is the serial line between the device and the tool.
type cable struct {
	device net.Conn
	unplug func() // when the device has left it

	mu       sync.Mutex
	streams  int
	from, to uint64 // bytes through the tunnel, seen from the device
}

// plugIn has the tool serve the other end of a new cable.
func (p *play) plugIn(ctx context.Context) *cable {
	device, host := quarklinktest.Pipe()
	c := &cable{device: device}
	tool := p.instance.tool()
	tool.OnEvent = func(e uart.Event) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if e.Kind == uart.EventTunnelDown {
			c.streams, c.from, c.to = c.streams+1, c.from+e.FromDevice, c.to+e.ToDevice
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	served := make(chan struct{})
	go func() { tool.Serve(ctx, host); close(served) }()
	c.unplug = sync.OnceFunc(func() { cancel(); <-served; device.Close(); host.Close() })
	return c
}

// carrier is how the device reaches its instance.
func (p *play) carrier() transport.Transport {
	if p.tunnel == nil {
		return p.instance.carrier()
	}
	return p.tunnel
}

// useCable makes the cable the device's only way out.
func (p *play) useCable(ctx context.Context) {
	p.line = p.plugIn(ctx)
	p.tunnel = &uart.Tunnel{Port: p.line.device, Random: rand.Reader}
}

// leaveCable ends the device's last stream and says what has gone through the
// tunnel.
func (p *play) leaveCable() {
	p.device.Close()
	p.line.unplug()
	p.line.mu.Lock()
	defer p.line.mu.Unlock()
	p.say("cable", "all of it went through the cable: %d streams, %d bytes from the device, %d to it",
		p.line.streams, p.line.from, p.line.to)
}
