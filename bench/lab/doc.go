// Package lab makes hosts out of network namespaces, joins them by a router namespace and puts an
// overlay on top: overlayd, the kernel's own vxlan device, or both on one network. A scenario, a small
// YAML file, says what there is to be: hosts, their underlay addresses, the MTU, loss and offloads of
// their links, what ICMP the router swallows, and the networks. Tests, benchmarks and "overlayctl lab"
// all run the same scenarios through it.
//
// A network is stated by hand, in a configuration file on each host that is a member, or it is one of a
// cluster and has endpoints: interfaces in containers, which are network namespaces, too. A cluster is made
// as an operator would make it, by overlayctl on its hosts. Whatever runs on a host has that host's name.
//
// Each host has one interface, eth0, a veth whose other end lies in the router namespace and bears the
// name of the host. Routed, every host has a subnet of its own and the router forwards between them;
// bridged, all share one subnet and the router namespace holds a bridge. Direct, two hosts are the two ends
// of one veth, and there is no router. No link leaves the namespaces.
//
// A lab is written down before it is made: its directory under Root holds state.json with the names of
// the namespaces and the processes. A lab that ends with its process holds a lock on that directory for
// as long as it lives, so that the leftovers of a process that was killed are known as such and are
// removed by the next lab that is started. A detached one stays until it is taken down.
//
// # Scenarios
//
// Every key that there is; most have a default and are left out. Unknown ones are errors.
//
//	name: example                       # small letters, digits, hyphens
//	about: One sentence for people.
//	topology: routed                    # the default, bridged or direct
//	story: shrink                       # narrow, shrink, live or floating: what "lab run" does with it; see Story
//	router:
//	  drop_icmp: too-big                # none (the default), too-big or all
//	  mtu: 1400                         # of a hop between all hosts that their links do not show
//	hosts:
//	  - name: h1
//	    underlay: [192.0.2.1/24]        # of eth0; the router has the highest address of the subnet
//	    mtu: 1500                       # of the link
//	    loss: 0.5%                      # of what crosses the link, each way
//	    floating: 203.0.113.1           # bridged only: what the router translates to the host, which advertises it
//	    offloads: {tunnel: off}         # names that ethtool -k shows, or those of OffloadGroups
//	    overlayd:                       # for the configuration of its daemon
//	      disable: [udp-gso]
//	      queues: 2                     # not in a cluster
//	      busy_poll: 100                # microseconds; not in a cluster
//	      checksum: auto                # not in a cluster
//	      log: debug
//	  - name: h2
//	    underlay: [198.51.100.1/24, "2001:db8::1/64"]
//	    cluster: manager                # or worker; the first one makes the cluster
//	    containers: [c1, c2]
//	networks:
//	  - name: blue                      # its device is blue0
//	    vni: 42
//	    subnets: [10.42.0.0/24]         # the first host has 10.42.0.1
//	    underlay: ipv4                  # which of the hosts' addresses are used
//	    mtu: 1400                       # derived when left out
//	    allow_nested: false
//	    members: {h1: overlayd}         # or kernel
//	  - name: green
//	    subnets: [10.43.0.0/24]         # vni and mtu are possible, too
//	    endpoints:                      # called as their containers are
//	      - {container: c1, ip: [10.43.0.10]}
//	      - {container: c2}             # the cluster chooses an address
//
// # Concurrency
//
// A Lab, its Hosts and Namespaces may be used by several goroutines at once; Close may not be called
// together with anything else. Namespace.Do runs its function on a goroutine of its own, locked to an
// operating system thread that enters the namespace and returns; a thread that fails to return is thrown
// away, as is that of Host.Start, which takes the name of the host. Further goroutines: for each overlayd, waiter
// (reaps the process and keeps how it ended); while the daemons start, for each a starter and a listener (waits for
// its word that it is ready); in a demo that kills a leader, talker (sends until it is over); in a story,
// for each TCP connection a sender and a receiver in each direction. All have ended when
// Close returns.
//
// Linux only, and root. The package may import anything of this module but cmd. Only cmd and the other packages of
// bench import it.
package lab
