// Filter deny answers 403 to every request. ../../README.md describes it.
export * from "@solo-io/proxy-runtime/proxy";
import { Context, FilterHeadersStatusValues, GrpcStatusValues, registerRootContext, send_local_response } from "@solo-io/proxy-runtime";
import { Plugin, Stream } from "../common/filter";

class Deny extends Plugin {
  constructor(id: u32) {
    super(id, "deny");
  }

  createContext(id: u32): Context {
    return new DenyStream(id, this);
  }
}

class DenyStream extends Stream {
  onRequestHeaders(count: u32, end: bool): FilterHeadersStatusValues {
    send_local_response(403, "", String.UTF8.encode("denied by the filter deny\n"), [], GrpcStatusValues.Unknown);
    return FilterHeadersStatusValues.StopIteration;
  }
}

registerRootContext((id: u32) => new Deny(id), "deny");
